"""The report as CSV, one row for each run."""

import csv
import io
import re
from collections.abc import Iterator

from ddpm.runner.report import commands
from ddpm.runner.report.comparison import Comparison, Setting

_FORMULA = re.compile(r"[=+\-@\t\r]")
_COLUMNS = {"loss": "final_loss", "images/s": "images_per_sec", "memory": "memory_mb"}
_LAST = ("device", "commit", "dirty", "error", "again", "sample")


def table(comparison: Comparison) -> str:
    """The CSV text; missing values are empty. Columns `<measure> - best` repeat in each run of a
    setting the difference of the setting from the best mean, paired over common seeds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    measures = [_COLUMNS.get(name, name) for name in comparison.measures]
    head = ["run", "folder", "setting", *comparison.keys, "seed", "state", "step", "total"]
    compared = _compared(comparison)
    words = ("- best", "- best, half of 95 %", "- best, common seeds")
    differences = [f"{_COLUMNS.get(m, m)} {word}" for m in compared for word in words]
    writer.writerow([*head, *measures, *_LAST, *differences])
    for row in _rows(comparison, compared):
        writer.writerow([_safe(value) for value in row])
    return out.getvalue()


def _compared(comparison: Comparison) -> list[str]:
    """The measures with paired differences."""
    found = {
        measure
        for setting in comparison.settings
        for measure, statistic in setting.statistics.items()
        if statistic.from_best is not None
    }
    return [measure for measure in comparison.measures if measure in found]


def _differences(setting: Setting | None, compared: list[str]) -> Iterator[float | None]:
    for measure in compared:
        statistic = None if setting is None else setting.statistics.get(measure)
        delta = None if statistic is None else statistic.from_best
        yield from (None,) * 3 if delta is None else (delta.mean, delta.half, delta.n)


def _rows(comparison: Comparison, compared: list[str]) -> Iterator[list[object]]:
    for run, flat in zip(comparison.runs, comparison.flats, strict=True):
        setting, found = comparison.setting_of(run), comparison.figures(run)
        commit, dirty = run.code
        total = None if run.total is None else round(run.total)
        yield [
            comparison.names[run.folder],
            run.folder,
            None if setting is None else setting.number,
            *(flat.get(key) for key in comparison.keys),
            *(run.seed, run.state, round(run.step), total),
            *(found.get(name) for name in comparison.measures),
            *(run.device or None, commit, dirty if commit else None, run.error),
            *(commands.again(run), commands.sample(run)),
            *_differences(setting, compared),
        ]


def _safe(value: object) -> object:
    """A value that no spreadsheet interprets as a formula."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
