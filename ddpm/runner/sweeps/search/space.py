"""The search space, from `interval(...)`, `range(...)` and `choice(...)` on the command line."""

import itertools
import math
from collections.abc import Container, Iterable
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


def split(arguments: list[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """The overrides of all trials, and the distribution of each searched key.

    Raises:
        InputError: no key is searched, or a range is empty.
    """
    fixed: list[str] = []
    space: dict[str, BaseDistribution] = {}
    parsed = OverridesParser.create().parse_overrides(arguments)
    for text, override in zip(arguments, parsed, strict=True):
        if override.type is OverrideType.CHANGE and override.is_sweep_override():
            space[override.get_key_element()] = _distribution(override, text)
        else:
            fixed.append(text)
    if not space:
        raise InputError(
            "hydra/sweeper=optuna: nothing to choose from. Give a key a range: "
            "'optimizer.lr=tag(log, interval(1e-5, 1e-2))' or model=unet,resunet."
        )
    return fixed, space


def _distribution(override: Override, text: str) -> BaseDistribution:
    """The distribution of one key.

    Raises:
        InputError: it is empty.
    """
    sweep = override.value()
    assert isinstance(sweep, Sweep)
    log = "log" in sweep.tags
    try:
        if isinstance(sweep, IntervalSweep):
            return _interval(sweep, log)
        if isinstance(sweep, RangeSweep) and not sweep.shuffle:
            return _range(sweep, log)
        return CategoricalDistribution([str(v) for v in override.sweep_string_iterator()])
    except ValueError as error:
        raise InputError(f"{text}: cannot be searched ({error}).") from None


def _interval(sweep: IntervalSweep, log: bool) -> BaseDistribution:
    """Any number of an interval; with `tag(int, interval(...))`, any whole number."""
    assert sweep.start is not None
    assert sweep.end is not None
    if "int" in sweep.tags:
        return IntDistribution(int(sweep.start), int(sweep.end), log=log)
    return FloatDistribution(float(sweep.start), float(sweep.end), log=log)


def _range(sweep: RangeSweep, log: bool) -> BaseDistribution:
    """The end is excluded, as in Hydra; a range may count down.

    Raises:
        ValueError: the step is 0, or the range is empty.
    """
    start, stop, step = sweep.start, sweep.stop, sweep.step
    assert start is not None
    assert stop is not None
    if step == 0:
        raise ValueError("its step is 0")
    count = math.ceil((stop - start) / step - 1e-9)
    if count < 1:
        raise ValueError("nothing is in it")
    if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
        first, last = sorted((start, start + (count - 1) * step))
        return IntDistribution(first, last, step=abs(step), log=log)
    ends = sorted((start, start + (count - 1) * step))
    low, high = (float(f"{x:.12g}") for x in ends)  # 0.1 + 2 * 0.1 is not 0.3
    return FloatDistribution(low, high, step=abs(step), log=log)


def overrides(params: dict[str, Any]) -> list[str]:
    """A trial's parameters as overrides; six digits are enough."""
    return [
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in params.items()
    ]


def check_compatible(
    trials: Iterable[FrozenTrial], space: dict[str, BaseDistribution], advice: str
) -> None:
    """Check that a study can continue with this search space. Bounds of a range may change.

    Raises:
        InputError: the key, its old and its new distribution.
    """
    for trial in trials:
        for key, stored in trial.distributions.items():
            if key not in space:
                continue
            try:
                check_distribution_compatibility(stored, space[key])
            except ValueError:
                raise InputError(
                    f"{key}: is chosen from {_described(space[key])}, but in the existing study "
                    f"from {_described(stored)}. {advice}"
                ) from None


def _described(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(map(str, distribution.choices))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    kind = "whole numbers" if isinstance(distribution, IntDistribution) else "numbers"
    log = ", log" if distribution.log else ""
    return f"{kind} from {distribution.low:g} to {distribution.high:g}{log}"


def allows(space: dict[str, BaseDistribution], params: dict[str, Any]) -> bool:
    """Whether parameters have a value for each key, and lie in the search space."""
    return params.keys() == space.keys() and all(
        space[key]._contains(space[key].to_internal_repr(value)) for key, value in params.items()
    )


def _choices(space: dict[str, BaseDistribution]) -> list[list[Any]] | None:
    """The distinct choices of each key; None if a key has a range of numbers."""
    choices = []
    for distribution in space.values():
        if not isinstance(distribution, CategoricalDistribution):
            return None
        choices.append(list(dict.fromkeys(distribution.choices)))
    return choices


def num_combinations(space: dict[str, BaseDistribution]) -> int | None:
    """The number of combinations of choices; None if a key has a range of numbers."""
    choices = _choices(space)
    return None if choices is None else math.prod(map(len, choices))


def untried(space: dict[str, BaseDistribution], tried: Container[str]) -> dict[str, Any] | None:
    """The first combination of choices whose `identity` is not among those tried."""
    for values in itertools.product(*(_choices(space) or [])):
        params = dict(zip(space, values, strict=True))
        if identity(params) not in tried:
            return params
    return None


def identity(params: dict[str, Any]) -> str:
    """The identity of the parameters of a trial: trials with the same one are one job."""
    return " ".join(sorted(overrides(params)))
