"""The status of a sweep's jobs as a plain table, fast enough to refresh every second."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ddpm.errors import shown
from ddpm.runner.report import stats
from ddpm.runner.report.run_record import SPEED, figure, read_object
from ddpm.runner.report.stats import NONE
from ddpm.runner.runs import run_dir
from ddpm.runner.runs.metrics_log import FILE, LOSS, final, parse, read_tail, values
from ddpm.runner.safe_io import atomic
from ddpm.runner.safe_io.listing import MISSING
from ddpm.runner.safe_io.plain import Refused
from ddpm.runner.safe_io.yaml_json import read_yaml

TAIL = 16 * 1024  # bytes of metrics.jsonl: some dozen lines
ORDER = ("done", "running", "failed", "killed", "preempted", "pruned", "waiting", "unknown")
_HEAD = ("job", "overrides", "step", "loss", "images/s", "left", "state")
_RIGHT = ("step", "loss", "images/s", "left")
_LEAST = {
    "job": 12,
    "overrides": 20,
    "state": 12,
}  # columns that may be cut, and their minimal widths
_T = TypeVar("_T")


@dataclass(frozen=True)
class JobStatus:
    """A line of the table. `left` and `whole`: remaining and total seconds, if known; `unread`: the
    first file that could not be read, and why."""

    folder: Path
    words: list[str]
    state: str
    step: float
    total: float | None
    loss: float | None
    speed: float | None
    left: float | None
    whole: float | None
    error: str
    unread: str


def table(folders: Sequence[Path], width: int | None = None) -> str:
    """One line for each job, and a summary.

    Args:
        width: characters of a line; None: the width of the terminal.
    """
    jobs = [read(folder) for folder in folders]
    names = _differing(jobs)
    short = _short([job.folder.name for job in jobs])
    rows = [_HEAD, *(_row(*one) for one in zip(short, jobs, names, strict=True))]
    widths = _fitted(rows, shutil.get_terminal_size().columns if width is None else width)
    lines = [_line(row, widths) for row in rows]
    return "\n".join([*lines, "", summary(jobs)])


def summary(jobs: Sequence[JobStatus]) -> str:
    """`7 done, 2 running, 1 failed, 2 waiting; about 12 min left`."""
    counts = Counter(job.state for job in jobs)
    text = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state]) or "no jobs"
    left = time_left(jobs)
    return text if left is None else f"{text}; about {stats.duration(left)} left"


def time_left(jobs: Sequence[JobStatus]) -> float | None:
    """Seconds until all are done, assuming that as many jobs run at a time as now and that waiting
    jobs take the mean time; None if no job runs or nothing is known."""
    running = [job for job in jobs if job.state == "running"]
    known = [job.left for job in running if job.left is not None]
    if not known:
        return None
    lengths = [job.whole for job in jobs if job.whole is not None]
    waiting = sum(job.state == "waiting" for job in jobs)
    work = sum(known) * len(running) / len(known) + waiting * sum(lengths) / len(lengths)
    return max(*known, work / len(running)) if len(known) > 1 or waiting else known[0]


def read(folder: Path) -> JobStatus:
    """The status of a job. Only files that have changed since the last call are read."""
    unread: list[str] = []
    nothing: dict[str, Any] = {}
    no_words: tuple[list[str], float | None] = ([], None)
    status = _cached(folder / "status.json", read_object, nothing, unread)
    words, batch = _cached(folder / "config.yaml", _words, no_words, unread)
    last = _cached(folder / FILE, _last, nothing, unread)
    refused = status.get("words")  # of a job that has no configuration
    if not words and isinstance(refused, list):
        words = [shown(word, 200) for word in refused if not str(word).startswith("sweep=")]
    state = status.get("state", "unknown" if unread else "waiting")
    if state not in run_dir.STATES:
        state = "unknown"
    if state == "running" and not run_dir.is_locked(folder):
        state = "killed"
    loss = last.get(LOSS)
    if state != "running":
        loss = _cached(folder / FILE, _final_loss, None, unread, "loss")
    step, total = figure(status.get("step")) or 0, figure(status.get("total"))
    seconds, speed = figure(status.get("seconds")), figure(last.get(SPEED))
    each = seconds / step if seconds and step else None
    if speed and batch:
        each = batch / speed
    left = None if each is None or total is None else each * max(0, total - step)
    whole = seconds if state == "done" else None
    if left is not None and each is not None and state == "running":
        whole = (each * step if seconds is None else seconds) + left
    return JobStatus(
        folder=folder,
        words=words,
        state=state,
        step=step,
        total=total,
        loss=figure(loss),
        speed=speed,
        left=left if state == "running" else None,
        whole=whole,
        error=shown(status["error"], 200) if isinstance(status.get("error"), str) else "",
        unread=unread[0] if unread else "",
    )


_seen: dict[tuple[Path, str], tuple[tuple[int, ...] | None, Any]] = {}


def _cached(
    file: Path, read_file: Callable[[Path], _T], otherwise: _T, unread: list[str], part: str = ""
) -> _T:
    """The result of reading a file, cached until the file changes. A file that exists but cannot be
    read is added to `unread`.

    Args:
        part: distinguishes the results of several functions for one file.
    """
    try:
        stamp = atomic.stamp(file)
        key = file, part
        if stamp is None or key not in _seen or _seen[key][0] != stamp:
            _seen[key] = stamp, read_file(file)
        return _seen[key][1]
    except Refused:
        return otherwise
    except OSError as error:
        if error.errno not in MISSING:
            unread.append(f"{file.name} cannot be read ({error.strerror})")
        return otherwise


def _words(file: Path) -> tuple[list[str], float | None]:
    """The overrides and the batch size of a job."""
    config = read_yaml(file)
    if not isinstance(config, dict):
        return [], None
    words, job = config.get("overrides"), config.get("job")
    size = job.get("batch_size") if isinstance(job, dict) else None
    texts = [shown(w, 200) for w in words] if isinstance(words, list) else []
    texts = [text for text in texts if not text.startswith("output_dir=")]
    return texts, figure(size)


def _last(file: Path) -> dict[str, Any]:
    """The latest value of each metric."""
    found: dict[str, Any] = {}
    for row in parse(read_tail(file, TAIL)):
        found |= {name: value for name, value in row.items() if value is not None}
    return found


def _final_loss(file: Path) -> float | None:
    return final(values(file.parent))


def _differing(jobs: Sequence[JobStatus]) -> list[str]:
    """The overrides of each job that are not common to all."""
    overrides = [set(job.words) for job in jobs if job.words]
    common = set.intersection(*overrides) if len(overrides) > 1 else set()
    return [" ".join(word for word in job.words if word not in common) for job in jobs]


def _short(names: Sequence[str]) -> list[str]:
    """The numbers at the start of the folders' names, if they are unique."""
    digits = [name.partition("-")[0] for name in names]
    clear = all(word.isdigit() for word in digits) and len({*digits}) == len(digits)
    return digits if clear and len(digits) > 1 else [shown(name) for name in names]


def _row(name: str, job: JobStatus, words: str) -> tuple[str, ...]:
    step = f"{job.step:,.0f}" + ("" if job.total is None else f"/{job.total:,.0f}")
    return (
        name,
        words or NONE,
        step if job.step or job.total else NONE,
        stats.number(job.loss),
        NONE if job.speed is None else f"{job.speed:,.0f}",
        stats.duration(job.left),
        _state(job),
    )


def _state(job: JobStatus) -> str:
    """The state and its reason, if there is one."""
    why = job.unread or (job.error if job.state != "done" else "")
    return f"{job.state}: {why}" if why else job.state


def _fitted(rows: Sequence[tuple[str, ...]], width: int) -> list[int]:
    """Widths of the columns; the longest that may be cut are cut until all fit."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    free = [_HEAD.index(name) for name in _LEAST]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        room = {i: widths[i] - _LEAST[_HEAD[i]] for i in free}
        most = max(free, key=lambda i: room[i])
        if room[most] <= 0:
            break
        widths[most] -= 1
    return widths


def _line(row: tuple[str, ...], widths: Sequence[int]) -> str:
    cells = []
    for name, cell, width in zip(_HEAD, row, widths, strict=True):
        cut = cell if len(cell) <= width else f"{cell[: width - 1]}…"
        cells.append(cut.rjust(width) if name in _RIGHT else cut.ljust(width))
    return "  ".join(cells).rstrip()
