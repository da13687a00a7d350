"""Means, confidence intervals, and formatted numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm.statistics.student import student_95

NONE = "\u2013"  # a missing value


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the half width of its 95 % interval (None for a single value)."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return mean, student_95(n - 1) * deviation / math.sqrt(n)


@dataclass(frozen=True)
class Difference:
    """The mean of `n` paired differences, and the half width of its 95 % interval."""

    mean: float
    half: float
    n: int

    def is_worse(self, sign: int) -> bool:
        """Whether the whole interval lies on the worse side of 0; `sign`: 1 if larger is better."""
        return sign * self.mean + self.half < 0


def paired(values: Mapping[Any, float], others: Mapping[Any, float]) -> Difference | None:
    """The difference values - others, paired over their common keys. None: fewer than two."""
    differences = [value - others[key] for key, value in values.items() if key in others]
    mean, half = interval(differences) if differences else (0.0, None)
    return None if half is None else Difference(mean, half, len(differences))


def number(value: float | None, digits: int = 4) -> str:
    """A number with four significant digits: `0.1234`, `1,234`, `1.2e-05`, `123,456`."""
    if value is None:
        return NONE
    if value == 0 or 1e-4 <= abs(value) < 10**digits:
        places = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
        return f"{value:,.{max(0, places)}f}" if value else "0"
    return f"{value:,.0f}" if 1 <= abs(value) < 1e9 else f"{value:.{digits - 1}g}"


def with_interval(mean: float, half: float | None) -> tuple[str, str]:
    """Mean and half width, both to its second digit: `("0.1234", "± 0.0012")`; an empty string
    without a half width."""
    if half is None:
        return number(mean), ""
    if half == 0 or abs(mean) >= 1e9 or half < 1e-9:
        return number(mean), f"± {number(half, 2)}"
    places = min(9, max(0, 1 - math.floor(math.log10(half))))
    return f"{mean:,.{places}f}", f"± {half:,.{places}f}"


def count(value: float | None) -> str:
    """A large count: `54.8 k`, `12.3 M`."""
    if value is None:
        return NONE
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """`7.7 s`, `1 min 40 s`, `2 h 03 min`, `3 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes // 60 % 24} h"
