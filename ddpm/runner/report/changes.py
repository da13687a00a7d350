"""Settings that were changed when a run was resumed."""

import math
import re
from itertools import pairwise
from typing import Any

from ddpm.runner import roles
from ddpm.runner.report.config_diff import ABSENT, Flat, frozen, tag, text
from ddpm.runner.report.run_record import RunRecord
from ddpm.runner.safe_io.tree import flatten, key_of
from ddpm.runner.terminal import shell

_KEY = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*")  # excludes `_target_`
_SIMPLE = ("null", "true", "false")

Change = tuple[str, int | None, str, str]  # key, step (None: unknown), old value, new value


def changes(run: RunRecord) -> list[Change]:
    """All changes of keys, in the order of the steps.

    Overrides that contradict the configuration count, too: a run without a finished step keeps no
    previous configuration.
    """
    now, found = _flat(run.config), []
    states = [(step, _flat(config)) for step, config in run.before] + [(None, now)]
    for (step, old), (_, new) in pairwise(states):
        for key, value in new.items():
            if tag(frozen(old.get(key, ABSENT))) != tag(frozen(value)):
                was = _text(old[key]) if key in old else "not there"
                found.append((key, step, was, _text(value)))
    known = {key for key, *_ in found}
    for word in run.overrides:
        key, equals, value = word.lstrip("+").partition("=")
        if equals and key in now and key not in known and _contradicts(value, now[key]):
            found.append((key, None, value, _text(now[key])))
    return found


def final_overrides(run: RunRecord) -> list[str]:
    """The overrides of a run, with the final values of changed keys."""
    now = _flat(run.config)
    left = {key: f"{key}={_quoted(now[key])}" for key, *_ in changes(run)}
    made = []
    for word in run.overrides:
        key = word.lstrip("+").partition("=")[0]
        made.append(word[: word.index(key)] + left[key] if key in left else word)
    return [*made, *(word for key, word in left.items() if key not in map(key_of, made))]


def as_text(run: RunRecord) -> list[str]:
    """`job.max_steps changed at step 20: 20, then 40`, one line for each change."""
    return [
        f"{key} changed {'before the first step' if step is None else f'at step {step:,}'}: "
        f"{was}, then {then}"
        for key, step, was, then in changes(run)
    ]


def _flat(config: dict[Any, Any]) -> Flat:
    """Settings by dotted keys, and the chosen option of each group."""
    choices = config.get("choices")
    pairs = [
        *flatten(choices if isinstance(choices, dict) else {}),
        *flatten({key: value for key, value in config.items() if key != "choices"}),
    ]
    return {k: v for k, v in pairs if _KEY.fullmatch(k) and roles.is_setting(k) and v != {}}


def _text(value: Any) -> str:
    return text(frozen(value))


def _contradicts(word: str, value: Any) -> bool:
    """Whether an override with a number, true, false or null differs from the value. Strings may
    have become paths, and lists can be written in many ways: they never count."""
    comparable = value is None or isinstance(value, bool | int | float)
    if word.lower() in _SIMPLE or (comparable and text(value) in _SIMPLE):
        return comparable and _is_plain(word) and word.lower() != text(value)
    return comparable and _is_plain(word) and float(word) != value


def _is_plain(word: str) -> bool:
    try:
        return word.lower() in _SIMPLE or math.isfinite(float(word))
    except ValueError:
        return False


def _quoted(value: Any) -> str:
    """A value as Hydra reads it back."""
    if not isinstance(value, str):
        return _text(value)
    return shell.quoted(value)
