"""Scores against network evaluations and seconds: for sweeps of sampler settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ddpm.runner.report.comparison import Comparison, Setting, Statistic
from ddpm.runner.report.plots import Plot, Point, Series, plot
from ddpm.runner.report.stats import number

MOST = 4  # scores that are drawn
FIRST = ("eval/kd", "eval/fd", "eval/fid")  # before others


@dataclass(frozen=True)
class Tradeoff:
    """A score against what it costs.

    Args:
        plots: over network evaluations, and over seconds where they are known.
        advice: the cheapest setting whose interval reaches the best value.
    """

    plots: list[Plot]
    advice: str


def tradeoffs(comparison: Comparison) -> list[Tradeoff]:
    """One for each score that ranks settings of different numbers of network evaluations, and only
    the first ones of many."""
    found = []
    for measure in sorted(comparison.measures, key=lambda name: not name.startswith(FIRST)):
        having = [s for s in comparison.settings if _evaluations(s, measure) is not None]
        if comparison.direction(measure) and len({_evaluations(s, measure) for s in having}) > 1:
            found.append(_tradeoff(comparison, measure, having))
    return found[:MOST]


def _evaluations(setting: Setting, measure: str) -> float | None:
    """Network evaluations of a picture; None: unknown, or not measured to the end."""
    statistic = setting.statistics.get(measure)
    if statistic is None or statistic.so_far or statistic.score is None:
        return None
    value = statistic.score.subject.get("evaluations")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        return None
    return float(value)


def _seconds(setting: Setting, measure: str) -> float | None:
    statistic = setting.statistics.get("seconds")
    return statistic.mean if statistic is not None and statistic.mean > 0 else None


def _tradeoff(comparison: Comparison, measure: str, settings: Sequence[Setting]) -> Tradeoff:
    sign = comparison.direction(measure)
    axes = (("network evaluations", _evaluations), ("seconds of the evaluation", _seconds))
    plots = [
        _plot(measure, across, settings, cost, sign)
        for across, cost in axes
        if all(cost(setting, measure) is not None for setting in settings)
    ]
    best = max(settings, key=lambda s: sign * s.statistics[measure].mean)
    goal = best.statistics[measure].mean
    reach = [s for s in settings if s is best or _reaches(s.statistics[measure], goal, sign)]
    cheapest = min(
        reach, key=lambda s: (_evaluations(s, measure) or 0, -sign * s.statistics[measure].mean)
    )
    name = measure.removeprefix("eval/")
    advice = f"{name}: best with {best.label} ({number(goal)})"
    if cheapest is not best:
        value = number(cheapest.statistics[measure].mean)
        advice += f"; the interval of {cheapest.label} ({value}) reaches it with fewer evaluations"
    return Tradeoff(plots, f"{advice}.")


def _bounds(statistic: Statistic) -> tuple[float | None, float | None]:
    """Over the runs of a setting; of a single run, the score's own."""
    if statistic.half is not None:
        return statistic.mean - statistic.half, statistic.mean + statistic.half
    score = statistic.score
    return (None, None) if score is None else (score.low, score.high)


def _reaches(statistic: Statistic, goal: float, sign: int) -> bool:
    low, high = _bounds(statistic)
    if low is None or high is None:
        return False
    return high >= goal if sign > 0 else low <= goal


def _plot(
    measure: str,
    across: str,
    settings: Sequence[Setting],
    cost: Callable[[Setting, str], float | None],
    sign: int,
) -> Plot:
    """All settings with their intervals, the front joined, and the floor as a level."""
    points, floors = [], []
    for setting in settings:
        statistic = setting.statistics[measure]
        x, (low, high) = cost(setting, measure) or 0.0, _bounds(statistic)
        label = f"{setting.label}: {number(statistic.mean)}"
        points.append(Point(x, statistic.mean, low, high, label))
        if statistic.score is not None and statistic.score.floor is not None:
            floors.append(statistic.score.floor)
    series = [
        Series("settings", points, joined=False, dots=True),
        Series("front", front(points, sign)),
    ]
    levels = [(sum(floors) / len(floors), "floor")] if floors else []
    title = measure.removeprefix("eval/")
    return plot(title, across, series, levels, log_x=True)


def front(points: Sequence[Point], sign: int) -> list[Point]:
    """The points that no other one betters at no higher cost, by rising cost.

    Args:
        sign: 1 if larger values are better, -1 if smaller ones are.
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -sign * p.y)):
        if not found or sign * point.y > sign * found[-1].y:
            found.append(point)
    return found
