"""The runs of job=watch as data for its page: read at most once a second, and kept small."""

import hashlib
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddpm.errors import InputError, one_line, shown
from ddpm.runner.report import comparison, curves, grids, stats, status
from ddpm.runner.report.comparison import Comparison
from ddpm.runner.report.curves import Panel
from ddpm.runner.report.follow import Followed
from ddpm.runner.report.run_record import MEMORY, RunRecord
from ddpm.runner.report.status import JobStatus
from ddpm.runner.runs import requests
from ddpm.runner.runs.find import changed
from ddpm.runner.runs.metrics_log import LOSS
from ddpm.runner.safe_io import atomic

READ_EVERY = 1.0  # seconds between two looks at the files, at least
FIND_EVERY = 5.0  # seconds between two searches for runs, at least
READ_AFTER = 3.9  # seconds after which what is new is read in any case
SHARE = 0.01  # of one core's time that reading may take, unless it takes longer than READ_AFTER
PICTURES = 64  # encoded previews that are kept
LARGEST = 1024  # pixels of a side of a preview on the page
ACTIONS = (*requests.ONCE, requests.STOP)


class Gone(InputError):
    """A run, or a picture of it, that is no longer there."""


class Runs:
    """The runs that a page shows, under ids that say nothing about their folders.

    Args:
        find: the folders of the runs.
        title: of the page.
        most: runs that are shown: those that run, and the newest.
    """

    def __init__(self, find: Callable[[], Sequence[Path]], title: str, most: int) -> None:
        self.find, self.title, self.most = find, title, most
        self.found = 0
        self._folders: list[Path] = []
        self._followed: dict[Path, Followed] = {}
        self._ids: dict[Path, str] = {}
        self._records: dict[str, RunRecord] = {}
        self._pictures: OrderedDict[Any, tuple[str, bytes]] = OrderedDict()
        self._content, self._version = b"", ""  # JSON without its first brace
        self._key: Any = None
        self._note = ""
        self._next_look = self._next_find = 0.0
        self._wait = 2.1
        self._lock = threading.Lock()

    def page(self, seen: str) -> bytes:
        """The data of the page as JSON; only the version if the page has `seen` that one."""
        with self._lock:
            began = time.monotonic()
            if began >= self._next_look:
                self._look()
                pause = max(READ_EVERY, (time.monotonic() - began) / SHARE)
                self._next_look = began + min(pause, READ_AFTER)
                self._wait = round(min(max(pause, 2.0), READ_AFTER) + 0.1, 3)
            new = f'"version": "{seen}"}}'.encode() if seen == self._version else self._content
            return f'{{"wait": {self._wait}, '.encode() + new

    def ask(self, run: str, action: str) -> None:
        """Write a file into the folder of a run.

        Raises:
            InputError: the run is gone or does not train now, or there is no such action.
        """
        record = self._record(run)
        if action not in ACTIONS:
            raise InputError("there is no such action.")
        if not _listens(record):
            raise InputError("only a run that trains now can be asked.")
        try:
            if action == requests.STOP:
                requests.ask_to_stop(record.folder)
            else:
                requests.ask(record.folder, action)
        except OSError as error:
            raise Gone(f"the file cannot be written ({error.strerror}).") from None
        with self._lock:
            self._next_look = 0.0

    def picture(self, run: str, which: str) -> tuple[str, bytes]:
        """Type and bytes of a preview, by its step, or of a sampling run's `grid`.

        Raises:
            InputError: it does not exist, or cannot be read.
        """
        record = self._record(run)
        step = int(which) if which.isascii() and which.isdigit() and len(which) < 13 else -1
        file = record.grid if which == "grid" else record.pictures.get(step)
        if file is None:
            raise Gone("there is no such picture.")
        try:
            key = (file, atomic.stamp(file))
        except OSError as error:
            raise Gone(f"{file.name} cannot be read ({error.strerror}).") from None
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        problems: dict[Path, str] = {}
        made = grids.encoded(file, LARGEST, problems)
        if made is None:
            raise Gone(problems[file].partition(": ")[2])
        with self._lock:
            self._pictures[key] = f"image/{made[0]}", made[1]
            while len(self._pictures) > PICTURES:
                self._pictures.popitem(last=False)
        return f"image/{made[0]}", made[1]

    def _record(self, run: str) -> RunRecord:
        record = self._records.get(run)
        if record is None:
            raise Gone("this run is gone.")
        return record

    def _look(self) -> None:
        """Read what has changed, and make the page's data anew if anything has."""
        self._search()
        statuses = {folder: status.read(folder) for folder in self._folders}
        records: dict[Path, RunRecord] = {}
        problems: dict[Path, str] = {}
        for folder, read in statuses.items():
            try:
                records[folder] = self._followed[folder].record(read)
            except Exception as error:  # one damaged run must not hide the others
                problems[folder] = one_line(error)
        pending = {folder: _pending(records[folder]) for folder in records}
        changes = {folder: self._followed[folder].changes for folder in records}
        key = (changes, problems, pending, self._note, self.found)
        if key == self._key:
            return
        self._key = key
        self._records = {self._ids[folder]: record for folder, record in records.items()}
        content = json.dumps(self._data(statuses, records, problems, pending)).encode()[1:]
        self._version = hashlib.sha256(content).hexdigest()[:16]
        self._content = f'"version": "{self._version}", '.encode() + content

    def _search(self) -> None:
        """Find the runs, and forget those that are gone."""
        began = time.monotonic()
        if began < self._next_find:
            return
        try:
            found = list(self.find())
            self._note = ""
        except InputError as error:  # the folder that was named is gone
            found, self._note = [], one_line(error)
        self.found = len(found)
        self._folders = _chosen(found, self.most)
        for folder in set(self._followed) - set(self._folders):
            del self._followed[folder], self._ids[folder]
            status.forget(folder)
        for folder in self._folders:
            if folder not in self._followed:
                self._followed[folder] = Followed(folder)
                self._ids[folder] = secrets.token_hex(8)
        took = time.monotonic() - began
        self._next_find = began + max(FIND_EVERY, took / SHARE)

    def _data(
        self,
        statuses: dict[Path, JobStatus],
        records: dict[Path, RunRecord],
        problems: dict[Path, str],
        pending: dict[Path, list[str]],
    ) -> dict[str, Any]:
        made = comparison.make(list(records.values()), self.title, means=False)
        large, quartiles = curves.panels(made)
        drawn = {line.run for panel in large + quartiles for line in panel.scales[0].lines}
        with_curves = {folder for at, folder in enumerate(records) if at in drawn}
        order = sorted(records.values(), key=_place)
        short = comparison.short_labels(made.settings)
        notes = [self._note] if self._note else []
        notes += [f"{shown(folder.name)}: {text}" for folder, text in problems.items()]
        if self.found > len(self._folders):
            notes.append(
                f"{len(self._folders)} of {self.found} runs: those that run, and the newest."
            )
        return {
            "title": self.title,
            "summary": status.summary(list(statuses.values())),
            "notes": [*notes, *made.notes],
            "runs": [
                _row(made, statuses[folder], record, self._ids[folder], pending[folder])
                | {"legend": _legend(made, short, record) if folder in with_curves else ""}
                for record in order
                if (folder := record.folder)
            ],
            "panels": [_panel(panel, made, order) for panel in large],
            "quartiles": [_panel(panel, made, order) for panel in quartiles],
        }


def _place(record: RunRecord) -> tuple[bool, float, str]:
    """Sorts training runs before others, and of each those first that began last, or were resumed
    last with other settings."""
    trains = record.config.get("kind") == "trains" or LOSS in record.metrics
    return not trains, -changed(record.folder, ("config.yaml",)), str(record.folder)


def _panel(panel: Panel, made: Comparison, order: Sequence[RunRecord]) -> dict[str, Any]:
    """A panel whose lines name the runs by their places in `order`: the numbers of settings, and
    so the colours, keep the order of the folders when a run begins."""
    places = {record.folder: place for place, record in enumerate(order)}
    found = asdict(panel)
    for scale in found["scales"]:
        for line in scale["lines"]:
            line["run"] = places[made.runs[line["run"]].folder]
    return found


def _row(
    made: Comparison,
    status: JobStatus,
    record: RunRecord,
    run: str,
    pending: list[str],
) -> dict[str, Any]:
    """A run for the page, with its numbers as texts."""
    setting = made.setting_of(record)
    memory = record.metrics.get(MEMORY)
    return {
        "id": run,
        "name": made.names[record.folder],
        "label": "" if setting is None else f"{setting.label}, seed {shown(record.seed)}",
        "style": curves.style(made.number_of(record)),
        "job": shown(record.job, 40),
        "state": record.state,
        "step": record.step,
        "total": record.total,
        "loss": stats.number(status.loss),
        "speed": stats.NONE if status.speed is None else f"{status.speed:,.0f}",
        "memory": stats.NONE if memory is None else f"{memory[1][-1]:,.0f} MB",
        "left": stats.duration(status.left) if record.state == "running" else stats.NONE,
        "time": stats.duration(record.seconds),
        "device": record.device,
        "problems": [p for p in (status.unread, status.error, *record.problems) if p],
        "pictures": list(record.pictures),
        "grid": record.grid is not None,
        "listens": _listens(record),
        "pending": pending,
    }


def _legend(made: Comparison, short: Sequence[str], record: RunRecord) -> str:
    """A short label that distinguishes the run from the others; else the name of its folder."""
    setting = made.setting_of(record)
    label = "" if setting is None else short[setting.number]
    if setting is None or not label:
        return made.names[record.folder]
    if len(setting.runs) == 1:
        return label
    return f"{label}, seed {shown(record.seed)}{made.folder_of_repeated(record)}"


def _listens(record: RunRecord) -> bool:
    """Whether the run obeys files in its folder now."""
    return record.state == "running" and record.config.get("kind") == "trains"


def _pending(record: RunRecord) -> list[str]:
    """The requests that a run has not seen yet."""
    if not _listens(record):
        return []
    return [name for name in ACTIONS if (record.folder / name).exists()]


def _chosen(folders: Sequence[Path], most: int) -> list[Path]:
    """The folders to show, in their order: those whose files changed last."""
    if len(folders) <= most:
        return list(folders)
    newest = sorted(folders, key=changed, reverse=True)[:most]
    return [folder for folder in folders if folder in set(newest)]
