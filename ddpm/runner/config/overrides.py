"""Overrides, the `key=value` arguments of a command line, as Hydra parses them."""

import functools
import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from ddpm.runner.terminal import shell

_KEY = re.compile(r"[+~]{0,2}([\w./@:-]+)=", re.ASCII)


@functools.cache
def parse(word: str) -> Override | None:
    """The parsed override; None if Hydra cannot parse it. Cached: do not modify the result."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def values(words: Iterable[str]) -> dict[str, Any]:
    """Keys and values of the overrides that set one value, quotes removed; the last one of a key
    wins. `${...}` references are not resolved."""
    return {
        override.key_or_group: override.value()
        for override in filter(None, map(parse, words))
        if not (override.is_sweep_override() or override.is_delete())
    }


def with_text_values(word: str, keys: Iterable[str], *, multirun: bool = True) -> str:
    """Quote the value of an override of `keys`, whose values are texts, if Hydra would parse it as
    a number or a boolean: `output_dir=007`, `sweep=1`, `runs=[1,true]`.

    The text is quoted as typed: `1e3`, not `1000.0`.
    """
    override = parse(word)
    if override is None or override.key_or_group not in keys or "=" not in word:
        return word
    head, _, typed = word.partition("=")
    typed = typed.strip()
    value: Any = override._value
    if override.value_type == ValueType.SIMPLE_CHOICE_SWEEP:
        if not multirun:  # a mistake; the message repeats the text as typed
            return word
        return f"{head}={_quoted_parts(typed.split(','), value.list)}"
    if override.value_type != ValueType.ELEMENT:
        return word
    if isinstance(value, list):
        return f"{head}=[{_quoted_parts(typed[1:-1].split(','), value)}]"
    return f"{head}={_quoted_parts([typed], [value])}"


def _quoted_parts(texts: list[str], elements: list[Any]) -> str:
    """Join texts with commas, quoting those that Hydra parses as numbers or booleans."""
    if len(texts) != len(elements):  # a comma within quotes or brackets
        return ",".join(texts)
    return ",".join(
        f'"{text.strip()}"' if isinstance(element, bool | int | float) else text
        for text, element in zip(texts, elements, strict=True)
    )


def spelled_with_quotes(word: str) -> str | None:
    """Spell an override so that Hydra parses its value as one text: the value in quotes for Hydra,
    the whole in quotes for the shell. None if quotes do not help."""
    key = _KEY.match(word)
    if key is None:
        return None
    value = word[key.end() :].strip()
    if len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]:
        value = value[1:-1]
    spelled = f"{key[0]}{shell.quoted(value)}"
    return shell.bash_word(spelled) if parse(spelled) is not None else None
