"""Small plots of points and lines for pages, without a script; plot.html draws them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ddpm.runner.report.curves import COLOURS, SIZE, Tick, place, ticks_of, widened


@dataclass(frozen=True)
class Point:
    """A value, with its interval and a text that appears when the mouse is over it."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one colour: `joined` by a line, or drawn as `dots`, or both."""

    name: str
    points: Sequence[Point]
    joined: bool = True
    dots: bool = False


@dataclass(frozen=True)
class Drawn:
    """A series as it is drawn: SVG paths of the line and of the error bars, and the dots as (left,
    bottom, label) in percent of the plot."""

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
    """Lay out series; the y axis is logarithmic if all values are positive and their range is wide.

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

    def at(x: float, y: float) -> tuple[float, float]:
        return place(x, left, right, across_kind), place(y, bottom, top, kind)

    return Plot(
        title,
        across,
        ticks_of(left, right, across_kind),
        ticks_of(bottom, top, kind),
        [_drawn(one, f"c{number % COLOURS}", at) for number, one in enumerate(series)],
        [(place(value, bottom, top, kind), name) for value, name in levels],
    )


def _drawn(one: Series, colour: str, at: Callable[[float, float], tuple[float, float]]) -> Drawn:
    """A series; `at` gives the position of (x, y) in percent."""
    placed = [at(point.x, point.y) for point in one.points]
    bars = [
        (at(p.x, p.low), at(p.x, p.high))
        for p in one.points
        if p.low is not None and p.high is not None
    ]
    dots = [(x, y, point.label) for (x, y), point in zip(placed, one.points, strict=True)]
    return Drawn(
        one.name,
        colour,
        _path(placed) if one.joined and len(placed) > 1 else "",
        "".join(map(_path, bars)),
        dots if one.dots or len(dots) == 1 else [],
    )


def _path(placed: Sequence[tuple[float, float]]) -> str:
    scale = SIZE / 100
    return "M" + "L".join(f"{x * scale:.5g} {SIZE - y * scale:.5g}" for x, y in placed)
