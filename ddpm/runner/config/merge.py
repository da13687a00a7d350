"""The configuration of an older run, with the command line's changes.

Keys that the older run's result depends on must not change, except those that the user allows.
"""

import copy
import os
from collections.abc import Iterable
from typing import Any

from ddpm.errors import InputError
from ddpm.runner import roles
from ddpm.runner.config import catalog, checks, derive
from ddpm.runner.config.base_run import BaseRun
from ddpm.runner.runs.old_names import FORMER_PARTS, FORMER_VALUES
from ddpm.runner.safe_io.tree import flatten, get_path, locate, set_path
from ddpm.runner.terminal import shell


def merge(
    config: dict[str, Any],
    base: BaseRun,
    keys: Iterable[str],
    allowed: Iterable[str],
) -> tuple[dict[str, Any], list[str]]:
    """The older configuration with the keys that the command line sets, and a line for each change.

    Args:
        keys: that the command line sets.
        allowed: keys that may change although the result depends on them.

    Raises:
        InputError: the command line changes a key that is fixed.
    """
    older, choices = base.config, config["choices"]
    merged, refused, changes = _completed(older, config, keys), [], []
    for key in keys:
        if roles.is_of_this_start(key) or (key == "job" and not base.resumed):
            continue
        old = _older_value(older, key, choices)
        new = choices[key] if key in choices else get_path(config, key)
        if new == old and key in older["choices"]:
            continue
        if new != old and not roles.may_move(key):
            if _is_fixed(key, base, allowed):
                refused.append((key, old, new))
                continue
            changes.append(f"{key}: {old} -> {new}")
        _take(merged, key, config)
    refusals = [_refusal(*change, base, merged, config) for change in refused]
    if base.any_data and "data" in keys:
        refusals += _misfits(merged["data"], base)
        if "data.conditional" not in keys:
            merged["data"]["conditional"] = older["data"].get("conditional", False)
    if refusals:
        raise InputError("\n".join(refusals[:5]))
    return merged, changes


def _completed(
    older: dict[str, Any], config: dict[str, Any], keys: Iterable[str]
) -> dict[str, Any]:
    """The older configuration with the keys that it lacks, this version's code of the job, and the
    `data_dir` of this start."""
    merged, choices = config | older, config["choices"]
    settings = {k: v for k, v in older.get("job", {}).items() if k not in ("_target_", "_partial_")}
    merged["job"] = config["job"] | settings
    merged["kind"] = config["kind"]
    if "DDPM_DATA" in os.environ or "data_dir" in keys:
        merged["data_dir"] = config["data_dir"]
    merged["choices"] = choices | older["choices"] | {"job": choices["job"]}
    merged["diffusion"] = config["diffusion"] | older.get("diffusion", {})
    return merged


def _is_fixed(key: str, base: BaseRun, allowed: Iterable[str]) -> bool:
    """Whether the older run's result depends on a key, and the user does not let it change."""
    if key not in roles.PRESETS and roles.within(key, allowed):
        return False
    if key == "job":
        return True
    if base.any_data and roles.within(key, ("data",)):
        return False
    if not base.resumed:
        return roles.is_fixed_by_checkpoint(key)
    return roles.is_fixed_on_resume(key, _lr_decay(base))


def _lr_decay(base: BaseRun) -> str:
    key = "job.lr_decay"
    return get_path(base.config, key) or FORMER_VALUES[key]


def _take(merged: dict[str, Any], key: str, config: dict[str, Any]) -> None:
    """Take the value of a key, or the chosen option of a group, from the command line."""
    choices = config["choices"]
    if key not in choices:
        set_path(merged, key, get_path(config, key))
        return
    merged["choices"][key] = choices[key]
    if key in config:
        merged[key] = config[key]


def _misfits(data: dict[str, Any], base: BaseRun) -> list[str]:
    """Why a network that knows no data set does not draw pictures like those of this one."""
    return [
        f"data.{key}={data.get(key)}: the pictures of {base.source} have {drawn}; set data.{key}, "
        "or choose another data set."
        for key in ("channels", "image_size")
        if data.get(key) != (drawn := base.config["data"].get(key))
    ]


def _older_value(older: dict[str, Any], key: str, groups: Iterable[str]) -> Any:
    """The older run's value of a key or group. If the key did not exist yet, what held then: its
    default, unless that changed something."""
    if key in groups:
        return older["choices"].get(key)
    node, name = locate(older, key)
    if node is not None and name in node:
        return node[name]
    return FORMER_VALUES.get(key, catalog.defaults(older["choices"]).get(key))


def _refusal(
    key: str, old: Any, new: Any, base: BaseRun, merged: dict[str, Any], config: dict[str, Any]
) -> str:
    """Why a key must not change, and what to do instead.

    Args:
        merged: the older configuration with the changes that are not refused.
        config: that of the command line.
    """
    if key == "job":
        return f"job={new}: {base.source} is of job={old}; leave it out."
    reason = f", and job.lr_decay={_lr_decay(base)} depends on it" if key in roles.LENGTH else ""
    text = f"{key}={new}: {base.source} was trained with {old}{reason}; leave it out"
    if key in roles.PRESETS:
        text += ", or give the keys it sets one by one"
    elif key == "model":  # its weights do not fit another network
        text += ", or leave out resume: another network is another run"
    elif base.resumed and _changes_network(key, merged, config):
        text += ", or leave out resume: its network does not fit"
        if key == "data" and get_path(config, "data.channels") == get_path(merged, "data.channels"):
            words = [shell.word("init_from", base.path), shell.word(key, new)]
            text += f"; a new run can begin with its weights: {' '.join(words)}"
    elif base.resumed:
        text += f", or allow the change: 'allow_changes=[{key}]'"
    return f"{text}."


def _changes_network(key: str, merged: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether a key changes what the network takes or returns: its weights then do not fit, even if
    the key may change. Keys of the network itself are not looked at."""
    changed = copy.deepcopy(merged)
    _take(changed, key, config)
    try:
        before = _network_shape(copy.deepcopy(merged))
    except InputError:  # reported on its own
        return False
    try:
        return _network_shape(changed) != before
    except InputError:
        return True


def _network_shape(config: dict[str, Any]) -> list[Any]:
    """The keys that follow from data, objective and augmentation: of the network, and those of the
    data that it repeats.

    Raises:
        InputError: the network has other values.
    """
    derive.model_keys(config)
    derived = ("model.num_classes", "model.out_channels", "model.augment_dim")
    return [get_path(config, key) for key in (*derived, *checks.REPEATED.values())]


def differences(stored: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The keys in which a sampling run differs from a stored one, of those that decide its images.
    A key that did not exist then counts as its default."""
    new = dict(flatten(config))
    known = dict(flatten(FORMER_PARTS | {"diffusion": FORMER_PARTS}))
    known |= catalog.defaults(stored["choices"])
    old = {key: known[key] for key in new if key in known} | dict(flatten(stored))
    return [
        f"{key}={old.get(key)} there, {new.get(key)} here"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and roles.decides_images(key)
    ]
