"""The interface of a tracker, and the identity of a run that trackers show."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ddpm.runner.runs.metrics_log import FILE, read_metrics


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Identity of a run. A resumed run keeps its `run_id`.

    Args:
        title: what distinguishes a job from the others of its sweep, for names they would share.
    """

    run_id: str
    name: str
    group: str | None  # the sweep it belongs to
    tags: list[str]
    job_type: str  # the name of the job: train, sample, ...
    trains: bool = False
    title: str = ""


class Tracker(Protocol):
    """A destination for metrics, images and files."""

    where: str | None  # one line: a link, or the command that shows or uploads the run

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record `{"train/loss": 0.1, ...}` at an optimizer step."""

    def log_image(self, step: int, name: str, grid: Tensor) -> None:
        """Record an image: uint8 (C, H, W), C of 1 or 3."""

    def log_files(self, kind: str, step: int, files: list[Path], *, final: bool) -> None:
        """Upload files of a step; kind `model`, `samples` or `report`; `final`: the last ones."""

    def close(self, state: str) -> None:
        """End the record; `state` is `done`, `failed`, `preempted` or `pruned`."""


def logged_until(run_dir: Path, step: int) -> Iterator[tuple[int, dict[str, float]]]:
    """The metrics of a resumed run up to the step that it resumes from, from its metrics.jsonl."""
    file = run_dir / FILE
    for row in read_metrics(file) if file.is_file() else []:
        if row["step"] <= step:
            yield row.pop("step"), {name: x for name, x in row.items() if x is not None}
