"""The two tables of a report, as rows of cells: settings, and single runs."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ddpm.errors import shown
from ddpm.runner.report import stats
from ddpm.runner.report.comparison import Comparison, Setting, Statistic, brief
from ddpm.runner.report.config_diff import cell
from ddpm.runner.report.grids import link
from ddpm.runner.report.run_record import RunRecord
from ddpm.runner.report.stats import NONE
from ddpm.runner.runs import state
from ddpm.runner.runs.scores import Scored

_ERROR = 60  # characters of an error in a table
_EXACT = ("parameters", "seconds", "memory")  # measures without an interval
BOLD = (
    "Bold: the best mean, and every mean that is not shown to be worse: the 95 % interval of its "
    "difference from the best, paired over common seeds, reaches 0. Means with fewer than two "
    "seeds in common with the best are not compared."
)
NONE_BOLD = (
    "No mean is bold: none shares two seeds with the best, so which setting is best is not shown."
)
DIFFERENCES = (
    "Difference from the best: the mean over the common seeds of this setting minus the best, seed "
    "by seed, ± half of its 95 % interval (Student's t). Each interval is for itself: of twenty "
    "equal settings about one leaves out 0 by chance."
)
_TITLES = {"loss": "final loss", "seconds": "time"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table. `order`: sort key, or None; `interval`: half width; `soft`: paler."""

    text: str
    order: float | str | None = None
    interval: str | None = None
    bold: bool = False
    soft: bool = False
    full: str = ""
    link: str = ""


@dataclass(frozen=True)
class Column:
    """A heading; `numeric` columns are right-aligned."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Row:
    """Cells, and the numbers of their setting and run (-1: none)."""

    cells: list[Cell]
    setting: int
    run: int = -1


@dataclass(frozen=True)
class Table:
    columns: list[Column] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


def heading(measure: str) -> str:
    return _TITLES.get(measure, measure.removeprefix("eval/"))


def of_settings(comparison: Comparison) -> Table:
    """One row for each setting: keys, runs, means and intervals."""
    devices = len({setting.devices for setting in comparison.settings}) > 1
    columns = [Column(key) for key in comparison.keys] or [Column("setting")]
    columns.append(Column("runs", numeric=True))
    columns += [Column(heading(m), numeric=True) for m in comparison.measures]
    columns += [Column("device")] if devices else []
    return Table(columns, [_setting(comparison, s, devices) for s in comparison.settings])


def _setting(comparison: Comparison, setting: Setting, devices: bool) -> Row:
    values = setting.values.values() if comparison.keys else [setting.label]
    cells = [_key(value) for value in values]
    n, done = len(setting.distinct), setting.done
    cells.append(Cell(str(n) if done == n else f"{done} of {n}", done, full=f"{done} of {n} done"))
    for measure in comparison.measures:
        found = setting.statistics.get(measure)
        if found is None:
            cells.append(Cell(NONE, interval="" if measure not in _EXACT else None))
            continue
        text, half = _figure(measure, found.mean, found.half)
        full = f"{found.mean!r}, n = {found.n}"
        if found.score is not None:
            half = _beside(found.score, half)
        cells.append(Cell(text, found.mean, half, found.bold, found.so_far, full))
    if devices:
        cells.append(_key(setting.devices))
    return Row(cells, setting.number)


def of_differences(comparison: Comparison) -> Table:
    """One row for each setting: its differences from the best mean, paired over common seeds. No
    rows where no two settings share two seeds."""
    measures = [
        measure
        for measure in comparison.measures
        if any(_statistic(s, measure).from_best is not None for s in comparison.settings)
    ]
    columns = [Column(key) for key in comparison.keys]
    columns += [Column(heading(m), numeric=True) for m in measures]
    rows = [
        Row(
            [
                *(_key(value) for value in setting.values.values()),
                *(_difference(_statistic(setting, measure)) for measure in measures),
            ],
            setting.number,
        )
        for setting in comparison.settings
    ]
    return Table(columns, rows if measures else [])


def _statistic(setting: Setting, measure: str) -> Statistic:
    return setting.statistics.get(measure, Statistic(0, None, 0, so_far=True))


def _difference(found: Statistic) -> Cell:
    if found.best:
        return Cell("best", 0.0, "", found.bold)
    if (delta := found.from_best) is None:
        return Cell(NONE, interval="")
    text, half = stats.with_interval(delta.mean, delta.half)
    sign = "+" if delta.mean > 0 else ""
    full = f"{delta.mean!r}, {delta.n} common seeds"
    return Cell(sign + text, delta.mean, f"{half} (n = {delta.n})", found.bold, full=full)


def bold_line(comparison: Comparison) -> str:
    """What the bold figures mean; empty if nothing is ranked."""
    found = [s for setting in comparison.settings for s in setting.statistics.values()]
    if any(statistic.bold for statistic in found):
        return BOLD
    return NONE_BOLD if any(statistic.best for statistic in found) else ""


def _figure(measure: str, mean: float, half: float | None) -> tuple[str, str | None]:
    """A mean and its interval as text; parameters, time and memory have no interval."""
    if measure == "parameters":
        return stats.count(mean), None
    if measure == "seconds":
        return stats.duration(mean), None
    if measure == "memory":
        return f"{mean:,.0f} MB", None
    return stats.with_interval(mean, half)


def _beside(score: Scored, half: str | None) -> str:
    """The text beside a score: its interval over runs, or its own, and the floor."""
    parts = [half] if half else []
    if not half and score.low is not None and score.high is not None:
        parts.append(f"({stats.number(score.low)} to {stats.number(score.high)})")
    if score.floor is not None:
        parts.append(f"floor {stats.number(score.floor)}")
    if score.as_good_as_real:
        parts.append(f"as good as real, at n = {score.n:,}")
    return ", ".join(parts)


def _key(value: str) -> Cell:
    """The cell of a key's value; numbers are sorted as numbers."""
    try:
        order: float | str | None = None if value == NONE else float(value)
    except ValueError:
        order = value.lower()
    short = brief(value)
    return Cell(short, order, full=value if short != value else "")


def of_runs(comparison: Comparison, output: Path) -> Table:
    """One row for each run: folder, keys, state and measurements."""
    commits = len({run.code for run in comparison.runs if run.code[0]}) > 1
    columns = [Column("run"), *map(Column, comparison.keys), Column("seed", numeric=True)]
    columns += [Column("state"), Column("step", numeric=True)]
    columns += [Column(heading(m), numeric=True) for m in comparison.measures]
    errors = any(run.error for run in comparison.runs)
    columns += [Column("device"), *[Column("code")] * commits, *[Column("error")] * errors]
    rows = [_run(comparison, i, run, output) for i, run in enumerate(comparison.runs)]
    for row, run in zip(rows, comparison.runs, strict=True):
        row.cells.extend([_key(code_text(run))] * commits)
        row.cells.extend([_error(run)] * errors)
    return Table(columns, rows)


def _run(comparison: Comparison, number: int, run: RunRecord, output: Path) -> Row:
    found = comparison.figures(run)
    name = comparison.names[run.folder]
    cells = [Cell(brief(name), name, full=name, link=link(run.folder, output))]
    cells += [_key(cell(comparison.flats[number], key)) for key in comparison.keys]
    cells.append(_key(NONE if run.seed is None else str(run.seed)))
    cells.append(Cell(run.state, run.state, full=run.error or "", soft=run.state != "done"))
    total = "" if run.total is None or run.total == run.step else f" of {run.total:,.0f}"
    cells.append(Cell(f"{run.step:,.0f}{total}", run.step))
    for measure in comparison.measures:
        if (value := found.get(measure)) is None:
            cells.append(Cell(NONE))
        else:
            cells.append(Cell(_figure(measure, value, None)[0], value, full=repr(value)))
    cells.append(_key(run.device or NONE))
    return Row(cells, comparison.number_of(run), number)


def _error(run: RunRecord) -> Cell:
    if not run.error:
        return Cell(NONE)
    return Cell(shown(run.error, _ERROR), run.error, full=run.error)


def code_text(run: RunRecord) -> str:
    """The abbreviated commit, with a plus sign if files differed from it."""
    commit, dirty = run.code
    return NONE if commit is None else commit[:10] + ("+" if dirty else "")


def facts(comparison: Comparison) -> list[str]:
    """Short facts for the head of a report."""
    n, settings = len(comparison.runs), len(comparison.settings)
    found = [
        f"{n} run{'s' * (n != 1)}: {state.counted(run.state for run in comparison.runs)}",
        f"{settings} setting{'s' * (settings != 1)}",
    ]
    if seconds := sum(run.seconds or 0 for run in comparison.runs):
        found.append(f"{stats.duration(seconds)} of compute")
    devices = {run.device for run in comparison.runs} - {""}
    if len(devices) == 1:
        found.append(f"on {devices.pop()}")
    if commits := sorted({code_text(run) for run in comparison.runs} - {NONE}):
        more = f" and {len(commits) - 3} more" if len(commits) > 3 else ""
        found.append(f"code {', '.join(commits[:3])}{more}")
    found.append(datetime.now().astimezone().strftime("%-d %B %Y, %H:%M"))
    return found
