"""The status table of runs (job=status, the end of a sweep), fast enough to redraw every second."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ddpm.errors import shown
from ddpm.runner.report import stats
from ddpm.runner.report.run_record import SPEED, figure, read_object
from ddpm.runner.report.stats import NONE
from ddpm.runner.runs import state
from ddpm.runner.runs.metrics_log import FILE, LOSS, final, parse, read_tail, values
from ddpm.runner.safe_io import atomic
from ddpm.runner.safe_io.listing import MISSING
from ddpm.runner.safe_io.plain import Refused
from ddpm.runner.safe_io.yaml_json import read_yaml

TAIL = 16 * 1024  # bytes of metrics.jsonl: a few dozen lines
_HEAD = ("job", "overrides", "step", "loss", "images/s", "left", "state")
_RIGHT = ("step", "loss", "images/s", "left")
_MIN_WIDTHS = {"job": 12, "overrides": 20, "state": 12}  # of columns that may be cut
_T = TypeVar("_T")


@dataclass(frozen=True)
class JobStatus:
    """A row of the table.

    Args:
        name: of the run's folder.
        state: one of `state.ORDER`.
        left, whole: remaining and total seconds, where known.
        error: of a failed run.
        unread: the first of its files that could not be read, and the reason.
    """

    name: str
    overrides: list[str]
    state: str
    step: float = 0
    total: float | None = None
    loss: float | None = None
    speed: float | None = None
    left: float | None = None
    whole: float | None = None
    error: str = ""
    unread: str = ""


def table(folders: Sequence[Path], width: int | None = None) -> str:
    """The status table of the runs in these folders; see `render`."""
    return render([read(folder) for folder in folders], width)


def render(jobs: Sequence[JobStatus], width: int | None = None) -> str:
    """One line per job, and a summary below.

    Args:
        width: maximum width in characters; None: that of the terminal, unlimited in a file.
    """
    common = common_overrides([job.overrides for job in jobs])
    names = _short([job.name for job in jobs])
    rows = [_HEAD, *(_row(name, job, common) for name, job in zip(names, jobs, strict=True))]
    terminal = shutil.get_terminal_size((10**4, 0)).columns
    widths = _fitted(rows, terminal if width is None else width)
    return "\n".join([*(_line(row, widths) for row in rows), "", summary(jobs)])


def common_overrides(overrides: Sequence[Sequence[str]]) -> list[str]:
    """The overrides that several jobs share; jobs without any are ignored."""
    first, *others = [words for words in overrides if words] or [[]]
    return [word for word in first if all(word in words for words in others)] if others else []


def summary(jobs: Sequence[JobStatus]) -> str:
    """`7 done, 2 running, 1 failed, 2 waiting; about 12 min left`."""
    counts = state.counted(job.state for job in jobs) or "no jobs"
    left = time_left(jobs)
    return counts if left is None else f"{counts}; about {stats.duration(left)} left"


def time_left(jobs: Sequence[JobStatus]) -> float | None:
    """Seconds until all jobs are done, if as many run at a time as now; None if no job runs or no
    running job's time is known. Waiting jobs are assumed to take as long as the mean of the others.
    """
    running = [job for job in jobs if job.state == "running"]
    known = [job.left for job in running if job.left is not None]
    if not known:
        return None
    lengths = [job.whole for job in jobs if job.whole is not None]
    waiting = sum(job.state == "waiting" for job in jobs)
    work = sum(known) * len(running) / len(known) + waiting * sum(lengths) / len(lengths)
    return max(*known, work / len(running)) if len(known) > 1 or waiting else known[0]


def read(folder: Path) -> JobStatus:
    """The status of a run. Files that have not changed since the last call are not read again."""
    unread: list[str] = []
    status: dict[str, Any] = _cached(folder / "status.json", read_object, {}, unread)
    no_config: tuple[list[str], float | None] = ([], None)
    overrides, batch_size = _cached(folder / "config.yaml", _overrides, no_config, unread)
    last: dict[str, Any] = _cached(folder / FILE, _last_values, {}, unread)
    refused = status.get("words")  # overrides of a job whose configuration was refused
    if not overrides and isinstance(refused, list):
        overrides = [shown(word, 200) for word in refused if not str(word).startswith("sweep=")]
    now = state.current(folder, status, "unknown" if unread else "waiting")
    running = now == "running"
    loss = last.get(LOSS) if running else _cached(folder / FILE, _final_loss, None, unread, "loss")
    step, total = figure(status.get("step")) or 0, figure(status.get("total"))
    seconds, speed = figure(status.get("seconds")), figure(last.get(SPEED))
    per_step = seconds / step if seconds and step else None
    if speed and batch_size:
        per_step = batch_size / speed
    left = None
    whole = seconds if now == "done" else None
    if running and per_step is not None and total is not None:
        left = per_step * max(0, total - step)
        whole = (per_step * step if seconds is None else seconds) + left
    return JobStatus(
        name=folder.name,
        overrides=overrides,
        state=now,
        step=step,
        total=total,
        loss=figure(loss),
        speed=speed,
        left=left,
        whole=whole,
        error=shown(status["error"], 200) if isinstance(status.get("error"), str) else "",
        unread=unread[0] if unread else "",
    )


_seen: dict[tuple[Path, str], tuple[tuple[int, ...] | None, Any]] = {}


def forget(folder: Path) -> None:
    """Forget what was read in a folder."""
    for key in [key for key in _seen if key[0].parent == folder]:
        del _seen[key]


def _cached(
    file: Path, read_file: Callable[[Path], _T], otherwise: _T, unread: list[str], part: str = ""
) -> _T:
    """The result of `read_file`, cached until the file changes; `otherwise` without a valid file.
    An existing file that cannot be read is added to `unread`."""
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


def _overrides(file: Path) -> tuple[list[str], float | None]:
    """The overrides and the batch size of a job."""
    config = read_yaml(file)
    if not isinstance(config, dict):
        return [], None
    stored, job = config.get("overrides"), config.get("job")
    size = job.get("batch_size") if isinstance(job, dict) else None
    overrides = [shown(word, 200) for word in stored] if isinstance(stored, list) else []
    return [word for word in overrides if not word.startswith("output_dir=")], figure(size)


def _last_values(file: Path) -> dict[str, Any]:
    """The last value of each metric in the last lines."""
    values: dict[str, Any] = {}
    for row in parse(read_tail(file, TAIL)):
        values |= {name: value for name, value in row.items() if value is not None}
    return values


def _final_loss(file: Path) -> float | None:
    return final(values(file.parent))


def _short(names: Sequence[str]) -> list[str]:
    """The numbers at the start of the names of a sweep's folders, if these are unique."""
    numbers = [name.partition("-")[0] for name in names]
    unique = all(number.isdigit() for number in numbers) and len({*numbers}) == len(numbers)
    return numbers if unique and len(numbers) > 1 else [shown(name) for name in names]


def _row(name: str, job: JobStatus, common: Sequence[str]) -> tuple[str, ...]:
    step = f"{job.step:,.0f}" + ("" if job.total is None else f"/{job.total:,.0f}")
    reason = job.unread or (job.error if job.state != "done" else "")
    return (
        name,
        " ".join(word for word in job.overrides if word not in common) or NONE,
        step if job.step or job.total else NONE,
        stats.number(job.loss),
        NONE if job.speed is None else f"{job.speed:,.0f}",
        stats.duration(job.left),
        f"{job.state}: {reason}" if reason else job.state,
    )


def _fitted(rows: Sequence[tuple[str, ...]], width: int) -> list[int]:
    """Column widths; the widest of the columns that may be cut shrink until all fit."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    shrinkable = [_HEAD.index(name) for name in _MIN_WIDTHS]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        room = {i: widths[i] - _MIN_WIDTHS[_HEAD[i]] for i in shrinkable}
        widest = max(room, key=lambda i: room[i])
        if room[widest] <= 0:
            break
        widths[widest] -= 1
    return widths


def _line(row: tuple[str, ...], widths: Sequence[int]) -> str:
    cells = []
    for name, cell, width in zip(_HEAD, row, widths, strict=True):
        cut = cell if len(cell) <= width else f"{cell[: width - 1]}…"
        cells.append(cut.rjust(width) if name in _RIGHT else cut.ljust(width))
    return "  ".join(cells).rstrip()
