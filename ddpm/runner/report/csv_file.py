"""The report as CSV: one row for each run, for other programs."""

import csv
import io
import re
from collections.abc import Iterator

from ddpm.runner.report import commands
from ddpm.runner.report.study import Study, figures

_FORMULA = re.compile(r"[=+\-@\t\r]")
_COLUMNS = {"loss": "final_loss", "images/s": "images_per_sec", "memory": "memory_mb"}


def table(study: Study) -> str:
    """Name, keys that differ, figures in full, and the rest; what is missing is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    measures = [_COLUMNS.get(name, name) for name in study.measures]
    head = ["run", "folder", "setting", *study.keys, "seed", "state", "step", "total", *measures]
    writer.writerow([*head, "device", "commit", "dirty", "error", "again", "sample"])
    for row in _rows(study):
        writer.writerow([_safe(value) for value in row])
    return out.getvalue()


def _rows(study: Study) -> Iterator[list[object]]:
    for run, flat in zip(study.runs, study.flats, strict=True):
        setting, found = study.setting_of(run), figures(run)
        commit, dirty = run.code
        total = None if run.total is None else round(run.total)
        yield [
            study.names[run.folder],
            run.folder,
            None if setting is None else setting.number,
            *(flat.get(key) for key in study.keys),
            *(run.seed, run.state, round(run.step), total),
            *(found.get(name) for name in study.measures),
            *(run.device or None, commit, dirty if commit else None, run.error),
            *(commands.again(run), commands.sample(run)),
        ]


def _safe(value: object) -> object:
    """A text that no spreadsheet takes for a formula."""
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
