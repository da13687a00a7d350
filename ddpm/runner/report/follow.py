"""The record of a run that is read repeatedly: only new lines and changed files are read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ddpm.errors import shown
from ddpm.runner.report import run_record
from ddpm.runner.report.run_record import MAX_ROWS, Points, RunRecord, Series, figure
from ddpm.runner.report.status import JobStatus
from ddpm.runner.runs import previews
from ddpm.runner.runs.metrics_log import FILE, NewLines
from ddpm.runner.safe_io import atomic
from ddpm.runner.safe_io.plain import Refused

_SELDOM = ("config.yaml", "about.json", "scores.jsonl", "grid.png", "strip.png")
_OFTEN = ("status.json", FILE, previews.FOLDER)


class GrowingMetrics:
    """The metrics of a file to which lines are added. Of long runs, fewer points are kept."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._points: Points = {}
        self._new_lines = NewLines()

    def __call__(self, file: Path, problems: list[str]) -> dict[str, Series]:
        """All series, after the new lines have been read."""
        try:
            self._read(file)
        except FileNotFoundError:
            self._forget()
        except (OSError, Refused) as error:
            problems.append(f"metrics.jsonl cannot be read: {shown(error, 200)}")
        for name, points in self._points.items():
            if len(points) > MAX_ROWS:
                self._points[name] = dict(list(points.items())[::2])
        return run_record.series(self._points)

    def _read(self, file: Path) -> None:
        lines, replaced = self._new_lines(file)
        if replaced:
            self._points = {}
        run_record.add_points(self._points, lines)


class Followed:
    """The record of a run, read again only where its files have changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changes = 0  # how often the record has changed
        self._metrics = GrowingMetrics()
        self._seldom: Any = None
        self._often: Any = None
        self._state: Any = None
        self._record: RunRecord | None = None

    def record(self, status: JobStatus) -> RunRecord:
        """The record now, given the status that was read now.

        Raises:
            InputError: the folder is not that of a run, or no longer.
        """
        seldom = [_stamp(self.folder / name) for name in _SELDOM]
        often = [_stamp(self.folder / name) for name in _OFTEN]
        state = (status.state, status.step, status.error)
        if self._record is None or seldom != self._seldom or None in often[:1]:
            self._record = run_record.read(self.folder, self._metrics)
        elif often != self._often or state != self._state:
            self._record = self._renewed(self._record, status)
        else:
            return self._record
        self._seldom, self._often, self._state = seldom, often, state
        self.changes += 1
        return self._record

    def _renewed(self, record: RunRecord, status: JobStatus) -> RunRecord:
        """The record with what changes at every log line."""
        problems: list[str] = []
        metrics = self._metrics(self.folder / FILE, problems)
        none: dict[int, Path] = {}
        pictures = run_record.seen(none, problems, previews.by_step, self.folder)
        stored = run_record.read_object(self.folder / "status.json", problems)
        return replace(
            record,
            state=status.state,
            step=status.step,
            total=status.total,
            seconds=figure(stored.get("seconds")),
            error=status.error or None,
            metrics=metrics,
            pictures=pictures,
            problems=tuple(dict.fromkeys([*record.problems, *problems])),
        )


def _stamp(file: Path) -> tuple[int, ...] | str | None:
    """A value that changes with a file; None if the time stamp is too coarse for that."""
    try:
        return atomic.stamp(file)
    except OSError:
        return "none"
