"""The keys in which runs differ: the chosen ones, without those that follow from them."""

import json
from collections.abc import Sequence
from typing import Any

from ddpm.runner import roles
from ddpm.runner.report.run_record import RunRecord
from ddpm.runner.report.stats import NONE
from ddpm.runner.safe_io.tree import flatten, key_of

ABSENT = object()  # the value of a key that a run does not have

Flat = dict[str, Any]  # values by dotted keys


def settings(run: RunRecord) -> Flat:
    """The choice of each group, and each key that is a setting of the run; without its seed."""
    order = {group: i for i, group in enumerate(roles.GROUP_ORDER)}
    groups = sorted(filter(_is_group, run.choices), key=lambda group: order.get(group, len(order)))
    flat = {group: frozen(run.choices[group]) for group in groups}
    for key, value in flatten(run.config):
        hidden = key == "seed" or key.endswith(("_target_", "_partial_")) or value == {}
        if not hidden and roles.is_setting(key):
            flat.setdefault(key, frozen(value))
    return flat


def identity(run: RunRecord) -> frozenset[tuple[str, Any]]:
    """All that decides the result of a run, its seed included: runs with an equal one are one
    measurement, repeated."""
    decisive = [(key, value) for key, value in flatten(run.config) if value != {}]
    return frozenset((k, tag(frozen(v))) for k, v in decisive if roles.decides_result(k))


def _is_group(name: Any) -> bool:
    return isinstance(name, str) and roles.is_setting(name)


def frozen(value: Any) -> Any:
    """A hashable form of a value: JSON of lists and dicts."""
    return json.dumps(value, default=str) if isinstance(value, list | dict) else value


def differing(runs: Sequence[RunRecord], flats: Sequence[Flat]) -> list[str]:
    """The keys that distinguish runs.

    These are groups whose choice differs and keys of the command line; of the others, only those
    that do not follow from these: `model.widths` is left out if each `model` has its own.
    """
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    groups = {group for run in runs for group in run.choices if _is_group(group)}
    given = {key_of(override) for run in runs for override in run.overrides} - groups
    chosen, others = [], []
    for key in keys:
        if key in groups or roles.within(key, given):
            if len({tag(flat.get(key, ABSENT)) for flat in flats}) > 1:
                chosen.append(key)
        elif len({tag(flat[key]) for flat in flats if key in flat}) > 1:
            others.append(key)
    for key in others:
        if not _follows(key, chosen, flats):
            chosen.append(key)
    return sorted(chosen, key=keys.index)


def tag(value: Any) -> tuple[bool, Any]:
    """A key that distinguishes 1 from True."""
    return isinstance(value, bool), value


def _follows(key: str, known: Sequence[str], flats: Sequence[Flat]) -> bool:
    """Whether the known keys determine this one in all runs that have it."""
    seen: dict[tuple[Any, ...], Any] = {}
    for flat in flats:
        if key in flat:
            values = tuple(tag(flat.get(k, ABSENT)) for k in known)
            if seen.setdefault(values, tag(flat[key])) != tag(flat[key]):
                return False
    return True


def text(value: Any) -> str:
    """A value as on the command line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        short = f"{value:.6g}" if float(f"{value:.6g}") == value else repr(value)
        mantissa, e, exponent = short.partition("e")
        return f"{mantissa}e{int(exponent)}" if e else short
    return str(value)


def cell(flat: Flat, key: str) -> str:
    """The value of a key as text, or a dash if the run has no such key."""
    return text(flat[key]) if key in flat else NONE
