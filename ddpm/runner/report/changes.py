"""What changed in a run's settings while it was on its way: `resume=` with other values."""

import math
import re
from itertools import pairwise
from typing import Any

from ddpm.runner import roles
from ddpm.runner.report.config_diff import Flat, frozen, key_of, text
from ddpm.runner.report.run_record import RunRecord
from ddpm.runner.safe_io.tree import flatten
from ddpm.runner.terminal import shell

_KEY = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*")  # no `_target_`: what is built is not chosen here
_SIMPLE = ("null", "true", "false")
_ABSENT = object()

Change = tuple[str, int | None, str, str]  # key, step (None: nobody knows), before, afterwards


def changes(run: RunRecord) -> list[Change]:
    """Each key that changed, as often as it did, in the order of the steps.

    Words of the command line that the configuration contradicts count, too: a run that had not
    made a step yet keeps no configuration of before.
    """
    now, found = _flat(run.config), []
    states = [(step, _flat(config)) for step, config in run.before] + [(None, now)]
    for (step, old), (_, new) in pairwise(states):
        for key, value in new.items():
            if _tag(old.get(key, _ABSENT)) != _tag(value):
                was = _text(old[key]) if key in old else "not there"
                found.append((key, step, was, _text(value)))
    known = {key for key, *_ in found}
    for word in run.overrides:
        key, equals, value = word.lstrip("+").partition("=")
        if equals and key in now and key not in known and _contradicts(value, now[key]):
            found.append((key, None, value, _text(now[key])))
    return found


def words(run: RunRecord) -> list[str]:
    """The overrides of a run with the values that it had in the end."""
    now = _flat(run.config)
    left = {key: f"{key}={_quoted(now[key])}" for key, *_ in changes(run)}
    made = []
    for word in run.overrides:
        key = word.lstrip("+").partition("=")[0]
        made.append(word[: word.index(key)] + left[key] if key in left else word)
    return [*made, *(word for key, word in left.items() if key not in map(key_of, made))]


def told(run: RunRecord) -> list[str]:
    """`job.max_steps changed at step 20: 20, then 40`, a line for each change."""
    return [
        f"{key} changed {'before the first step' if step is None else f'at step {step:,}'}: "
        f"{was}, then {then}"
        for key, step, was, then in changes(run)
    ]


def _flat(config: dict[Any, Any]) -> Flat:
    """Settings by dotted keys, and each group's option by its name."""
    choices = config.get("choices")
    pairs = [
        *flatten(choices if isinstance(choices, dict) else {}),
        *flatten({key: value for key, value in config.items() if key != "choices"}),
    ]
    return {k: v for k, v in pairs if _KEY.fullmatch(k) and roles.is_setting(k) and v != {}}


def _tag(value: Any) -> tuple[bool, Any]:
    """1 and True are equal to Python."""
    return isinstance(value, bool), frozen(value)


def _text(value: Any) -> str:
    return text(frozen(value))


def _contradicts(word: str, value: Any) -> bool:
    """Whether a plain word is another number, or another of true, false and null, than the value.
    Texts may have become paths, and lists are written in many ways: they never count."""
    told = value is None or isinstance(value, bool | int | float)
    if word.lower() in _SIMPLE or (told and text(value) in _SIMPLE):
        return told and _is_plain(word) and word.lower() != text(value)
    return told and _is_plain(word) and float(word) != value


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
