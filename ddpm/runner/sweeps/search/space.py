"""What a search may choose from: `interval(...)`, `range(...)`, `choice(...)` of the words."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    OverrideType,
    RangeSweep,
    Sweep,
)
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.trial import FrozenTrial

from ddpm.errors import InputError


def split(words: list[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """The words that are the same for all trials, and what is chosen for each key.

    Raises:
        InputError: nothing is to be chosen, or a range is empty.
    """
    fixed, space = [], {}
    for word, override in zip(words, OverridesParser.create().parse_overrides(words), strict=True):
        if override.type is OverrideType.CHANGE and override.is_sweep_override():
            space[override.get_key_element()] = _distribution(override, word)
        else:
            fixed.append(word)
    if not space:
        raise InputError(
            "hydra/sweeper=optuna: has nothing to choose. Give a key a range: "
            "'optimizer.lr=tag(log, interval(1e-5, 1e-2))' or model=unet,resunet."
        )
    return fixed, space


def _distribution(override: Override, word: str) -> BaseDistribution:
    """What one key may be.

    Raises:
        InputError: no value at all.
    """
    sweep: Sweep = override.value()
    log = "log" in sweep.tags
    try:
        if isinstance(sweep, IntervalSweep):
            return _interval(sweep, log)
        if isinstance(sweep, RangeSweep) and not sweep.shuffle:
            return _range(sweep, log)
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except ValueError as error:
        raise InputError(f"{word}: cannot be searched ({error}).") from None


def _interval(sweep: IntervalSweep, log: bool) -> BaseDistribution:
    """Any number between two, or with `tag(int, interval(...))` any whole number."""
    if "int" in sweep.tags:
        return IntDistribution(int(sweep.start), int(sweep.end), log=log)
    return FloatDistribution(float(sweep.start), float(sweep.end), log=log)


def _range(sweep: RangeSweep, log: bool) -> BaseDistribution:
    """Its end is not in it, as in Hydra; a range may count down.

    Raises:
        ValueError: its step is 0, or nothing is in it.
    """
    start, stop, step = sweep.start, sweep.stop, sweep.step
    if step == 0:
        raise ValueError("its step is 0")
    count = math.ceil((stop - start) / step - 1e-9)
    if count < 1:
        raise ValueError("nothing is in it")
    low, high = sorted((start, start + (count - 1) * step))
    if all(isinstance(x, int) for x in (start, stop, step)):
        return IntDistribution(low, high, step=abs(step), log=log)
    low, high = (float(f"{x:.12g}") for x in (low, high))  # 0.1 + 2 * 0.1 is not 0.3
    return FloatDistribution(low, high, step=abs(step), log=log)


def words(params: dict[str, Any]) -> list[str]:
    """The choices of a trial as the command line would say them; six digits are enough."""
    return [
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in params.items()
    ]


def check_same(
    trials: Iterable[FrozenTrial], space: dict[str, BaseDistribution], advice: str
) -> None:
    """See that a study can go on with what is chosen from now. Bounds of a range may move.

    Raises:
        InputError: the key, and what it was.
    """
    for trial in trials:
        for key, before in trial.distributions.items():
            if key not in space:
                continue
            try:
                check_distribution_compatibility(before, space[key])
            except ValueError:
                raise InputError(
                    f"{key}: is chosen from {_text(space[key])} now, and was from {_text(before)} "
                    f"in the study that is there. {advice}"
                ) from None


def _text(distribution: BaseDistribution) -> str:
    """What a key may be, for people."""
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(map(str, distribution.choices))
    kind = "whole numbers" if isinstance(distribution, IntDistribution) else "numbers"
    log = ", log" if distribution.log else ""
    return f"{kind} from {distribution.low:g} to {distribution.high:g}{log}"


def holds(space: dict[str, BaseDistribution], params: dict[str, Any]) -> bool:
    """Whether a trial has a choice for each key, and one that may be made now."""
    return params.keys() == space.keys() and all(
        space[key]._contains(space[key].to_internal_repr(value)) for key, value in params.items()
    )


def count(space: dict[str, BaseDistribution]) -> int | None:
    """How many combinations there are; None where numbers are chosen, too."""
    if not all(isinstance(one, CategoricalDistribution) for one in space.values()):
        return None
    return math.prod(len(set(one.choices)) for one in space.values())


def untried(space: dict[str, BaseDistribution], tried: set[str]) -> dict[str, Any] | None:
    """The first combination of choices that is not among those tried, told by their `text`."""
    for chosen in itertools.product(*(one.choices for one in space.values())):
        params = dict(zip(space, chosen, strict=True))
        if text(params) not in tried:
            return params
    return None


def text(params: dict[str, Any]) -> str:
    """The choices of a trial in one line; two trials of the same text are one job."""
    return " ".join(sorted(words(params)))
