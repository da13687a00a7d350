"""In which keys runs differ: those that were chosen, not what follows from them."""

import json
from collections.abc import Sequence
from typing import Any

from ddpm.runner.report.run_record import RunRecord
from ddpm.runner.report.stats import NONE

# The parts of a run, in the order of a table; `model=unet` stands for all of `model.*`.
_ORDER = ("job", "experiment", "data", "model", "schedule", "objective", "weighting")
_ORDER += ("optimizer", "sampler", "guidance", "hardware")
# These follow from other groups, or change no result.
_SILENT = ("job_data", "model_data", "job_model_data_optimizer", "tracker", "team")
# What is no setting: who, where, when; and copies of parts that stand elsewhere, too.
_IGNORED = ("seed", "run_id", "version", "overrides", "choices", "tracker", "team", "diffusion")
_IGNORED += ("output_dir", "data_dir", "data.data_dir", "resume", "allow_changes", "code", "sweep")
_IGNORED += ("source", "classifier_source")
_ABSENT = object()

Flat = dict[str, Any]


def settings(run: RunRecord) -> Flat:
    """Each key of a run's configuration that is a setting, and each group's choice, by name."""
    flat: Flat = {}
    for group in sorted(run.choices, key=lambda g: _ORDER.index(g) if g in _ORDER else len(_ORDER)):
        if group not in _SILENT and isinstance(group, str):
            flat[group] = frozen(run.choices[group])
    _flatten(run.config, "", flat)
    return flat


def _flatten(node: dict[Any, Any], prefix: str, flat: Flat) -> None:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if key in _IGNORED or name in ("_target_", "_partial_"):
            continue
        if isinstance(value, dict):
            _flatten(value, f"{key}.", flat)
        else:
            flat.setdefault(key, frozen(value))


def frozen(value: Any) -> Any:
    """A value that can be compared and hashed: lists and dicts as their JSON."""
    return json.dumps(value, default=str) if isinstance(value, list | dict) else value


def differing(runs: Sequence[RunRecord], flats: Sequence[Flat]) -> list[str]:
    """The keys to tell runs apart by.

    Groups whose choice differs, and keys that the command line gave; of all others only those that
    do not follow from these: `model.widths` is not named where each `model` has its own.
    """
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    groups = {group for run in runs for group in run.choices if group not in _SILENT}
    given = {_key(word) for run in runs for word in run.overrides} - groups
    chosen, others = [], []
    for key in keys:
        by_hand = any(key == g or key.startswith(f"{g}.") for g in given)
        if key in groups or by_hand:
            if len({_tag(flat.get(key, _ABSENT)) for flat in flats}) > 1:
                chosen.append(key)
        elif len({_tag(flat[key]) for flat in flats if key in flat}) > 1:
            others.append(key)
    for key in others:
        if not _follows(key, chosen, flats):
            chosen.append(key)
    return sorted(chosen, key=keys.index)


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _tag(value: Any) -> tuple[bool, Any]:
    """1 and True are equal to Python."""
    return isinstance(value, bool), value


def _follows(key: str, known: Sequence[str], flats: Sequence[Flat]) -> bool:
    """Whether the known keys tell what this one is, in each run that has it."""
    seen: dict[tuple[Any, ...], Any] = {}
    for flat in flats:
        if key in flat:
            place = tuple(_tag(flat.get(k, _ABSENT)) for k in known)
            if seen.setdefault(place, _tag(flat[key])) != _tag(flat[key]):
                return False
    return True


def text(value: Any) -> str:
    """A value as the command line writes it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        short = f"{value:.6g}" if float(f"{value:.6g}") == value else repr(value)
        mantissa, e, exponent = short.partition("e")
        return f"{mantissa}e{int(exponent)}" if e else short
    return str(value)


def cell(flat: Flat, key: str) -> str:
    """The value of a key as text, or a dash where a run has no such key."""
    return text(flat[key]) if key in flat else NONE
