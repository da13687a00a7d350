"""Small plots of points and lines for pages, without a script; plot.html draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ddpm.runner.report.curves import COLOURS, SIZE, Tick, ticks_of, widened


@dataclass(frozen=True)
class Point:
    """A value, with its interval and a text that appears when it is pointed at."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one colour; `joined` by a line, `dots` drawn."""

    name: str
    points: Sequence[Point]
    joined: bool = True
    dots: bool = False


@dataclass(frozen=True)
class Drawn:
    """A series in percent of the plot: `dots` are (left, bottom, label)."""

    name: str
    colour: str
    path: str
    bars: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Plot:
    """A plot. `levels` are horizontal lines: (bottom in percent, name)."""

    title: str
    across: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    drawn: list[Drawn]
    levels: list[tuple[float, str]] = field(default_factory=list)


def plot(
    title: str,
    across: str,
    series: Sequence[Series],
    levels: Sequence[tuple[float, str]] = (),
    *,
    log_x: bool = False,
) -> Plot:
    """Lay out series; the y axis is logarithmic where all values are positive and their range is
    wide.

    Args:
        across: the name of the x axis.
        levels: (value, name) of horizontal lines.
    """
    points = [point for one in series for point in one.points]
    xs = [point.x for point in points]
    ys = [v for p in points for v in (p.y, p.low, p.high) if v is not None and math.isfinite(v)]
    ys += [value for value, _ in levels]
    kind = "log" if min(ys) > 0 and max(ys) > 20 * min(ys) else "linear"
    across_kind = "log" if log_x and min(xs) > 0 and max(xs) > min(xs) else "linear"
    left, right = widened(min(xs), max(xs), across_kind)
    bottom, top = widened(min(ys), max(ys), kind)

    def place(value: float, low: float, high: float, kind: str) -> float:
        if kind == "log":
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return 100 * (value - low) / (high - low)

    def at(x: float, y: float) -> tuple[float, float]:
        return place(x, left, right, across_kind), place(y, bottom, top, kind)

    drawn = []
    for number, one in enumerate(series):
        placed = [at(point.x, point.y) for point in one.points]
        bars = [
            (at(p.x, p.low), at(p.x, p.high))
            for p in one.points
            if p.low is not None and p.high is not None
        ]
        labels = [point.label for point in one.points]
        drawn.append(
            Drawn(
                one.name,
                f"c{number % COLOURS}",
                _path(placed) if one.joined and len(placed) > 1 else "",
                "".join(map(_path, bars)),
                [(x, y, label) for (x, y), label in zip(placed, labels, strict=True)]
                if one.dots or len(placed) == 1
                else [],
            )
        )
    return Plot(
        title,
        across,
        [(place, label) for place, label in ticks_of(left, right, across_kind)],
        ticks_of(bottom, top, kind),
        drawn,
        [(place(value, bottom, top, kind), name) for value, name in levels],
    )


def _path(placed: Sequence[tuple[float, float]]) -> str:
    scale = SIZE / 100
    return "M" + "L".join(f"{x * scale:.5g} {SIZE - y * scale:.5g}" for x, y in placed)
