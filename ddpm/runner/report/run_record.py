"""A run folder read into a plain record. The files may be untrusted: they are bounded and checked,
and damage is listed in the record."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ddpm.errors import InputError, shown
from ddpm.runner import roles
from ddpm.runner.runs import old_names, previews, state
from ddpm.runner.runs import scores as scores_file
from ddpm.runner.runs.metrics_log import LOSS, MAX_BYTES, is_number, parse, read_tail
from ddpm.runner.runs.scores import Scored
from ddpm.runner.safe_io import listing
from ddpm.runner.safe_io.plain import Refused, regular_size
from ddpm.runner.safe_io.tree import flatten
from ddpm.runner.safe_io.yaml_json import read_json_file, read_yaml

SPEED = "train/images_per_sec"
MEMORY = "train/memory_mb"
MAX_ROWS = 20_000  # of metrics.jsonl, evenly; a curve on a page has some hundred points
MAX_JSON = 64 * 1024
_LARGEST = 1e100  # of a measurement; larger values are treated as damage
_WANTED = (LOSS, SPEED, MEMORY, "eval/")
_UNTIL = re.compile(r"config\.until-step-(\d{1,12})\.yaml")
_MOST_UNTIL = 20  # previous configurations that are read, the newest
_GRIDS = ("grid.png", "strip.png")  # of sampling jobs

_T = TypeVar("_T")
Points = dict[str, dict[float, float]]  # by metric and step
Series = tuple[np.ndarray, np.ndarray]  # steps and values, (n,) each, all finite
MetricsReader = Callable[[Path, list[str]], dict[str, Series]]


@dataclass(frozen=True)
class RunRecord:
    """A run.

    Args:
        config: the resolved configuration, or empty.
        state: one of runs/state.py: ORDER.
        step, total: finished steps, and all.
        seconds: run time over all starts.
        about: device, parameters, versions.
        metrics: a series for each name.
        pictures: previews by step.
        scores: the lines of scores.jsonl.
        grid: the image of a sampling job.
        before: previous configurations and the steps until which they applied, in order.
        problems: damage and remarks, one line each.
    """

    folder: Path
    config: dict[str, Any]
    state: str
    step: float = 0
    total: float | None = None
    seconds: float | None = None
    error: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Series] = field(default_factory=dict)
    scores: tuple[Scored, ...] = ()
    pictures: dict[int, Path] = field(default_factory=dict)
    grid: Path | None = None
    before: tuple[tuple[int, dict[str, Any]], ...] = ()
    problems: tuple[str, ...] = ()

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The chosen option of each group."""
        found = self.config.get("choices")
        return found if isinstance(found, dict) else {}

    @property
    def job(self) -> str:
        return str(self.choices.get("job", "?"))

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def device(self) -> str:
        """The name of the device, or an empty string."""
        found = self.about.get("device")
        return shown(found, 100) if isinstance(found, str) else ""

    @cached_property
    def overrides(self) -> list[str]:
        """The overrides of the command line."""
        found = self.config.get("overrides")
        return [w for w in found if isinstance(w, str)] if isinstance(found, list) else []

    @cached_property
    def code(self) -> tuple[str | None, bool]:
        """The commit of the code, if known, and whether files differed from it."""
        found = self.config.get("code")
        code = found if isinstance(found, dict) else {}
        commit = code.get("commit")
        return (shown(commit, 40) if isinstance(commit, str) else None), code.get("dirty") is True


def read(folder: Path, metrics_of: MetricsReader | None = None) -> RunRecord:
    """The record of a run.

    Args:
        metrics_of: reads the metrics instead, from a file; problems are added to the list.

    Raises:
        InputError: the folder is not that of a run.
    """
    folder = Path(folder)
    problems: list[str] = []
    none: list[Path] = []
    names = ("config.yaml", "status.json")
    if not any(seen(True, problems, listing.exists, folder / name) for name in names):
        raise InputError(f"{folder} is not the folder of a run (no config.yaml, no status.json).")
    config = _config(folder, problems)
    status = read_object(folder / "status.json", problems)
    metrics = (metrics_of or _metrics)(folder / "metrics.jsonl", problems)
    files = seen(none, problems, listing.paths, folder, "config.until-step-*.yaml")
    before = tuple(_before(files))
    unread = len(files[-_MOST_UNTIL:]) - len(before)
    if changed := unread + _result_changes([old for _, old in before], config):
        often = "once" if changed == 1 else f"{changed} times"
        problems.append(f"its settings or the code changed {often} during the run (config.until-*)")
    grids = [folder / n for n in _GRIDS if seen(False, problems, listing.exists, folder / n)]
    seen(none, problems, listing.paths, folder / "checkpoints")
    error = status.get("error")
    return RunRecord(
        folder=folder,
        config=config,
        state=state.current(folder, status, "unknown" if status or metrics else "waiting"),
        step=figure(status.get("step")) or 0,
        total=figure(status.get("total")),
        seconds=figure(status.get("seconds")),
        error=None if error is None else shown(error, 2000),
        about=read_object(folder / "about.json", problems),
        metrics=metrics,
        scores=_scores(folder, problems),
        pictures=seen({}, problems, previews.by_step, folder),
        grid=grids[0] if grids else None,
        before=before,
        problems=tuple(dict.fromkeys(problems)),
    )


def seen(otherwise: _T, problems: list[str], look: Callable[..., _T], *arguments: Any) -> _T:
    """The result of a function that lists; if it fails, `otherwise`, and the problem is added."""
    try:
        return look(*arguments)
    except listing.Unreachable as error:
        problems.append(str(error).removesuffix("."))
        return otherwise


def _config(folder: Path, problems: list[str]) -> dict[str, Any]:
    file = folder / "config.yaml"
    try:
        config = read_yaml(file)
    except FileNotFoundError:
        return {}  # of a job that failed early
    except OSError as error:
        problems.append(f"config.yaml cannot be read: {error.strerror}")
        return {}
    except Refused as error:
        problems.append(f"config.yaml is damaged: {error}")
        return {}
    if not isinstance(config, dict) or not isinstance(config.get("choices"), dict):
        problems.append("config.yaml is not the configuration of a run")
        return {}
    return old_names.renamed(config)


def _before(files: list[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Steps and the configurations until then; damaged ones are left out."""
    named = ((_UNTIL.fullmatch(path.name), path) for path in files)
    steps = sorted((int(match[1]), path) for match, path in named if match)
    for step, path in steps[-_MOST_UNTIL:]:
        try:
            config = read_yaml(path)
        except (OSError, Refused):
            continue
        if isinstance(config, dict):
            yield step, old_names.renamed(config)


def _result_changes(before: list[dict[str, Any]], now: dict[str, Any]) -> int:
    """How many of the changes that a run has seen may show in its result: of the code, or of a key
    that is fixed on resume unless the user allows the change."""
    return sum(_may_show(old, new) for old, new in pairwise([*before, now]))


def _may_show(old: dict[str, Any], new: dict[str, Any]) -> bool:
    if old.get("code") != new.get("code"):
        return True
    was, then = dict(flatten(old)), dict(flatten(new))
    key = "job.lr_decay"
    lr_decay = str(was.get(key, old_names.FORMER_VALUES[key]))
    absent = object()
    return any(
        was.get(name, absent) != then.get(name, absent) and roles.is_fixed_on_resume(name, lr_decay)
        for name in {**was, **then}
    )


def read_object(file: Path, problems: list[str] | None = None) -> dict[str, Any]:
    """The object in a small JSON file; empty if it is missing.

    Args:
        problems: list to which damage is added.

    Raises:
        OSError, Refused: the file is damaged, and `problems` is None.
    """
    try:
        found = read_json_file(file, MAX_JSON)
    except FileNotFoundError:
        return {}
    except (OSError, Refused) as error:
        if problems is None:
            raise
        problems.append(f"{file.name} is damaged: {shown(error, 200)}")
        return {}
    return found if isinstance(found, dict) else {}


def _metrics(file: Path, problems: list[str]) -> dict[str, Series]:
    """The metrics of a whole file, or of its end."""
    try:
        if regular_size(file) > MAX_BYTES:
            problems.append(f"of metrics.jsonl only the last {MAX_BYTES // 1024**2} MiB are read")
        lines = [line for line in read_tail(file, MAX_BYTES) if line]
    except FileNotFoundError:
        return {}
    except (OSError, Refused) as error:
        problems.append(f"metrics.jsonl cannot be read: {shown(error, 200)}")
        return {}
    lines = lines[:: -(-len(lines) // MAX_ROWS) or 1]
    found: Points = {}
    add_points(found, lines)
    return series(found)


def add_points(found: Points, lines: Iterable[bytes]) -> None:
    """Add the finite values of each metric of a report. For repeated steps the last line counts."""
    for row in parse(lines):
        step = figure(row["step"])
        for name, value in row.items():
            if name.startswith(_WANTED) and step is not None:
                number = figure(value)
                if number is not None:
                    found.setdefault(name, {})[step] = number


def series(found: Points) -> dict[str, Series]:
    """The points of each metric in the order of the steps."""
    return {
        name: (np.array(sorted(points)), np.array([points[step] for step in sorted(points)]))
        for name, points in found.items()
    }


def _scores(folder: Path, problems: list[str]) -> tuple[Scored, ...]:
    """The scores of the run; none without the file."""
    if not seen(False, problems, listing.exists, folder / scores_file.FILE):
        return ()
    try:
        return tuple(scores_file.read(folder))
    except InputError as error:
        problems.append(shown(error, 300).removesuffix("."))
        return ()


def figure(value: Any) -> float | None:
    """The value as a float, or None unless it and the squares of it are finite."""
    return float(value) if is_number(value) and abs(value) <= _LARGEST else None
