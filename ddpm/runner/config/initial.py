"""init_from: what a new run takes from the run whose weights it begins with."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddpm.errors import InputError
from ddpm.runner.config import base_run
from ddpm.runner.config.base_run import BaseRun
from ddpm.runner.config.build import check_targets
from ddpm.runner.hub import reference
from ddpm.runner.safe_io.tree import get_path

KEYS = ("init_from", "init_weights", "init_allow")
# Weights mean little without the process that they were trained for.
BROUGHT = ("model", "schedule", "objective")
FOLLOWING = ("channels", "out_channels", "image_size", "num_classes")  # the new run's data
_MEANING = ("_target_", "learned_variance", "sigma_data")  # of an objective; others only train


def bring(config: dict[str, Any], base: BaseRun | None, keys: Iterable[str]) -> None:
    """Take over network, schedule and objective of the source, but for the keys that the command
    line sets, and note run and step of the source as `init_source`.

    Raises:
        InputError: there is no such source, or it was trained for another schedule or objective,
            which `init_allow` does not list, or one of its parts is unknown.
    """
    source, keys = config.get("init_from"), set(keys)
    if base is not None and base.resumed:
        _check_resumed(config, base, keys)
        return
    if source is None:
        if wrong := [key for key in KEYS if key in keys and config.get(key)]:
            raise InputError(f"{wrong[0]}: is for init_from=..., which is not set.")
        return
    named = f"init_from={source}"
    found = base_run.summary_of("init_from", source)
    trained, job = get_path(found.hparams, "choices.job"), config["choices"]["job"]
    if trained != job:
        raise InputError(f"{named}: of job={trained}; job={job} begins with weights of its own.")
    if "experiment" not in keys:
        for part in BROUGHT:
            if part not in keys:
                check_targets(found.hparams.get(part), part)
            _bring_part(part, config, found.hparams, keys)
    _check_process(config, found.hparams, named)
    config["init_from"] = source if reference.is_remote(source) else str(Path(source).absolute())
    config["init_source"] = {"file": str(found.file.absolute()), **found.about}


def _bring_part(part: str, config: dict[str, Any], theirs: dict[str, Any], keys: set[str]) -> None:
    """Take over a part of the same class."""
    ours, brought = config.get(part, {}), theirs.get(part, {})
    if ours.get("_target_") != brought.get("_target_"):
        return
    following = FOLLOWING if part == "model" else ()
    config[part] = ours | {
        key: value
        for key, value in brought.items()
        if key not in following and f"{part}.{key}" not in keys
    }
    process = theirs.get("diffusion", {})
    if part == "objective" and "clip" in process and "diffusion.clip" not in keys:
        config["diffusion"]["clip"] = process["clip"]


def _check_process(config: dict[str, Any], theirs: dict[str, Any], named: str) -> None:
    allowed = config.get("init_allow") or []
    for part in ("schedule", "objective"):
        ours, brought = config.get(part, {}), theirs.get(part)
        compared = _MEANING if part == "objective" else tuple(ours)
        if brought is None or part in allowed:
            continue
        different = [k for k in compared if k in brought and ours.get(k) != brought[k]]
        if not different:
            continue
        old, new = (node["choices"].get(part) for node in (theirs, config))
        if old == new:
            key = different[0]
            old, new = brought[key], ours.get(key)
            part_key = f"{part}.{key}"
        else:
            part_key = part
        raise InputError(
            f"{part_key}={new}: the weights of {named} were trained with {old}; leave it out, or "
            f"let it differ: 'init_allow=[{part}]'."
        )


def _check_resumed(config: dict[str, Any], base: BaseRun, keys: set[str]) -> None:
    """A resumed run has begun: its command may repeat where, and say nothing else."""
    if "init_from" not in keys or config.get("init_from") is None:
        return
    given, then = config["init_from"], base.config.get("init_from")
    ours = given if reference.is_remote(given) else str(Path(given).absolute())
    if ours != then:
        began = "with random weights" if then is None else f"with those of {then}"
        raise InputError(f"init_from={given}: {base.source} began {began}; leave it out.")
