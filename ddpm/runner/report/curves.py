"""Metric curves of all runs as SVG paths in a coordinate system of 1000 x 1000."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ddpm.runner.report.comparison import Comparison
from ddpm.runner.report.run_record import RunRecord, Series
from ddpm.runner.runs.metrics_log import LOSS
from ddpm.trackers.loss_curve import smooth

SIZE = 1000
POINTS = 240  # of a line, at most
_SMALLEST = 1e-100  # on a logarithmic axis
RAW = 6  # up to this number of runs, raw values are shown behind the smoothed ones
COLOURS, DASHES = 6, 4
_QUARTILES = {f"{LOSS}_q{i}": f"t in {t}" for i, t in enumerate(
    ("[0, T/4)", "[T/4, T/2)", "[T/2, 3T/4)", "[3T/4, T)"), 1)}  # fmt: skip

Tick = tuple[float, str]  # position in percent from the left or the bottom, and label


@dataclass(frozen=True)
class Line:
    """A run's line: `path` smoothed, `raw` as logged (or empty)."""

    run: int
    setting: int
    name: str
    path: str
    raw: str
    dot: bool

    @property
    def style(self) -> str:
        """CSS classes of the setting's colour and dashes."""
        return style(self.setting)


@dataclass(frozen=True)
class Scale:
    """The lines on a linear or logarithmic axis from `low` to `high`."""

    kind: str
    low: float
    high: float
    ticks: list[Tick]
    lines: list[Line]


@dataclass(frozen=True)
class Panel:
    """A metric of all runs. For positive values, the first scale is logarithmic."""

    metric: str
    title: str
    last: float
    ticks: list[Tick]
    scales: list[Scale]


def style(setting: int) -> str:
    """CSS classes of a setting: six colours, then other dashes."""
    return f"c{setting % COLOURS} d{setting // COLOURS % DASHES}"


def panels(comparison: Comparison) -> tuple[list[Panel], list[Panel]]:
    """Panels of the loss and of evaluations, and panels of the loss by quarter of t, which share
    one axis."""
    names = {name for run in comparison.runs for name in run.metrics}
    large = [(LOSS, "training loss")] if LOSS in names else []
    evaluated = sorted(
        name
        for name in names
        if name.startswith("eval/")  # single values are in the tables
        and any(len(run.metrics[name][0]) > 1 for run in comparison.runs if name in run.metrics)
    )
    large += [(name, column) for name in evaluated for column in _columns(comparison, name)]
    quartiles = [(name, title) for name, title in _QUARTILES.items() if name in names]
    shared = [
        run.metrics[n][1] for run in comparison.runs for n, _ in quartiles if n in run.metrics
    ]
    span = (min(map(np.min, shared)), max(map(np.max, shared))) if shared else None
    return (
        [_panel(comparison, name, title) for name, title in large],
        [_panel(comparison, name, title, span) for name, title in quartiles],
    )


def _panel(
    comparison: Comparison, metric: str, title: str, span: tuple[float, float] | None = None
) -> Panel:
    found = [
        (i, run, run.metrics[metric])
        for i, run in enumerate(comparison.runs)
        if metric in run.metrics and _column(comparison, run, metric) in (None, title)
    ]
    last = max(float(steps[-1]) for _, _, (steps, _) in found) or 1.0
    positive = all(values.min() > _SMALLEST for _, _, (_, values) in found)
    curves = [(i, run, series, _drawn(metric, series, positive)) for i, run, series in found]
    with_raw = len(found) <= RAW
    ends = [end for _, _, s, c in curves for v in (c, s[1] if with_raw else c)
            for end in (v.min(), v.max())]  # fmt: skip
    low, high = span or (float(min(ends)), float(max(ends)))
    scales = []
    for kind in ("log", "linear") if positive else ("linear",):
        bottom, top = widened(low, high, kind)
        lines = [
            Line(
                run=i,
                setting=comparison.number_of(run),
                name=_name(comparison, run),
                path=_path(series[0], curve, last, bottom, top, kind),
                raw=_path(*series, last, bottom, top, kind) if with_raw else "",
                dot=len(curve) == 1,
            )
            for i, run, series, curve in curves
        ]
        scales.append(Scale(kind, bottom, top, ticks_of(bottom, top, kind), lines))
    ticks = [(at, _short(label)) for at, label in ticks_of(0, last, "linear")]
    return Panel(metric, title, last, ticks, scales)


def _columns(comparison: Comparison, metric: str) -> list[str]:
    """A panel for each ruler of a score."""
    columns = (comparison.rulers.column(r, metric) for r in comparison.runs if metric in r.metrics)
    return sorted(set(columns))


def _column(comparison: Comparison, run: RunRecord, metric: str) -> str | None:
    """The column of a score; None for other metrics."""
    return comparison.rulers.column(run, metric) if metric.startswith("eval/") else None


def _name(comparison: Comparison, run: RunRecord) -> str:
    setting = comparison.setting_of(run)
    label = setting.label if setting else comparison.names[run.folder]
    return f"{label}, seed {run.seed}{comparison.folder_of_repeated(run)}"


def _drawn(metric: str, series: Series, positive: bool) -> np.ndarray:
    """Smoothed as in the run's loss.png, on the logarithm of positive values. Evaluations are few
    and are not smoothed."""
    values = series[1]
    if not metric.startswith(LOSS):
        return values
    return np.exp(smooth(np.log(values))) if positive else smooth(values)


def widened(low: float, high: float, kind: str) -> tuple[float, float]:
    """The range with a margin."""
    if kind == "log":
        air = max((high / low) ** 0.04, 1.02)
        return low / air, high * air
    air = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return low - air, high + air


def _path(
    steps: np.ndarray, values: np.ndarray, last: float, low: float, high: float, kind: str
) -> str:
    """`M0 12L3 40...`: y points down. A single point is a line of zero length with round ends."""
    pick = np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).round().astype(int))
    x = steps[pick] / last * SIZE
    if kind == "log":
        y = (1 - np.log(values[pick] / low) / math.log(high / low)) * SIZE
    else:
        y = (1 - (values[pick] - low) / (high - low)) * SIZE
    return _written(np.stack([x, y.clip(-SIZE, 2 * SIZE)], axis=1).astype(float).tobytes())


@lru_cache(maxsize=1024)  # job=watch draws all lines anew when one has grown
def _written(points: bytes) -> str:
    """The path through points: float64 (N, 2)."""
    texts = [f"{x:.5g} {y:.5g}" for x, y in np.frombuffer(points).reshape(-1, 2).tolist()]
    return f"M{'L'.join(texts)}" + ("h0" if len(texts) == 1 else "")


def ticks_of(low: float, high: float, kind: str) -> list[Tick]:
    """Round values between the ends of an axis."""
    if kind == "log":
        values = list(_of_decades(low, high))
        if len(values) >= 2:
            return [(place(v, low, high, kind), f"{v:g}") for v in values]
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(s * step for s in (1, 2, 5, 10) if (high - low) / (s * step) <= 5)
    first = math.ceil(low / step - 1e-9)
    values = [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(place(v, low, high, kind), f"{v:.10g}") for v in values if kind != "log" or v > 0]


def _short(label: str) -> str:
    """`20k` for 20000 steps."""
    return f"{label[:-3]}k" if label.endswith("000") else label


def _of_decades(low: float, high: float) -> Iterator[float]:
    """1, 2, 5 of each power of ten; only powers of ten, or fewer, over a large range."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, (last - first) // 6)
    heads: Sequence[int] = (1, 2, 5) if math.log10(high / low) <= 2.2 else (1,)
    for exponent in range(first, last + 1, stride):
        yield from (v for head in heads if low <= (v := head * 10.0**exponent) <= high)


def place(value: float, low: float, high: float, kind: str) -> float:
    """The position of a value on an axis, in percent."""
    if kind == "log":
        return 100 * math.log(max(value, low) / low) / math.log(high / low)
    return 100 * (value - low) / (high - low)
