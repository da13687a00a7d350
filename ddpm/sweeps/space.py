"""What a search may choose from: `interval(...)`, `range(...)`, `choice(...)` of the words."""

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
)

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
    """Its end is not in it, as in Hydra."""
    start, stop, step = sweep.start, sweep.stop, sweep.step
    if all(isinstance(x, int) for x in (start, stop, step)):
        return IntDistribution(start, start + (stop - 1 - start) // step * step, step=step, log=log)
    count = -int(-(stop - start) // step)
    return FloatDistribution(start, start + (count - 1) * step, step=step, log=log)


def words(params: dict[str, Any]) -> list[str]:
    """The choices of a trial as the command line would say them; six digits are enough."""
    return [
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in params.items()
    ]
