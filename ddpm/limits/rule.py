"""A rule: the allowed values of a key, and how to say them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from types import UnionType
from typing import Any

from ddpm.errors import InputError, nearest, shown


@dataclass(frozen=True)
class Rule:
    """The allowed values of a key: their type, a description, a test, and whether null is one."""

    type: type | UnionType
    allowed: str
    test: Callable[[Any], bool]
    null: bool = False
    options: tuple[str, ...] = ()

    def check(self, key: str, value: Any, *, whole_floats: bool = False) -> Any:
        """The value, converted to the type of the rule: 1 to 1.0; with `whole_floats`, 1e3 to 1000.

        Raises:
            InputError: it is not allowed; names the key, the value and what is.
        """
        converted = _convert(value, self.type, whole_floats)
        if converted is None and self.null:
            return None
        if isinstance(converted, self.type) and self.test(converted):
            return converted
        text = "null" if value is None else shown(value, 200)
        null = ", or null" if self.null else ""
        hint = nearest(str(value), self.options)
        raise InputError(f"{key}={text}: must be {self.allowed}{null}.{hint}")


def integer(least: int, most: int | None = None, *, null: bool = False) -> Rule:
    upper = "" if most is None else f" to {most:,}"
    return Rule(
        int,
        f"a whole number from {least}{upper}",
        lambda x: x >= least and (most is None or x <= most),
        null,
    )


def integer_or(word: str, least: int) -> Rule:
    return Rule(
        int | str,
        f"a whole number from {least}, or {word}",
        lambda x: x == word or (type(x) is int and x >= least),
        options=(word,),
    )


def number(allowed: str, test: Callable[[float], bool], *, null: bool = False) -> Rule:
    return Rule(float, allowed, lambda x: math.isfinite(x) and test(x), null)


def positive(*, null: bool = False) -> Rule:
    return number("a finite number above 0", lambda x: x > 0, null=null)


def from_0() -> Rule:
    return number("a finite number from 0", lambda x: x >= 0)


def from_0_to_1() -> Rule:
    return number("a number from 0 to 1", lambda x: 0 <= x <= 1)


def between_0_and_1() -> Rule:
    return number("a number above 0 and below 1", lambda x: 0 < x < 1)


def below_1() -> Rule:
    return number("a number from 0 to below 1", lambda x: 0 <= x < 1)


def path(*, null: bool = False) -> Rule:
    return Rule(str, "a path", lambda x: x != "", null)


def one_of(*options: str, null: bool = False) -> Rule:
    return Rule(str, f"one of {', '.join(options)}", lambda x: x in options, null, options)


def integers(least: int = 1) -> Rule:
    return Rule(
        list,
        f"a list of whole numbers from {least}",
        lambda x: all(type(n) is int and n >= least for n in x),
    )


def boolean() -> Rule:
    return Rule(bool, "true or false", lambda x: True)


def is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _convert(value: Any, target: type | UnionType, whole_floats: bool) -> Any:
    """Convert a value to the type of its rule: 1 to 1.0, 5 to "5", if wanted 1e3 to 1000. A boolean
    is neither a number nor a text."""
    if isinstance(value, bool):
        return str(value) if target in (int, float) else value
    if target in (int | str, float | str) and not isinstance(value, str):  # numbers stay numbers
        target = int if target == int | str else float
    if isinstance(value, tuple) and target in (list, int | list):
        return list(value)
    if target == int | list:
        target = int
    if target is str and isinstance(value, int):
        return str(value)
    if whole_floats and target is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if target is float and isinstance(value, Real):
        return float(value)
    return value
