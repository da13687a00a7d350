"""What a run is to be, as plain data: the border between the configuration and the program."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plan:
    """One run.

    Args:
        config: resolved; `config["job"]` holds all the job is built from.
        hparams: the same without the copies of parts in the job: for files and trackers.
        output_dir: the run's folder, to be made unless `resume`.
        in_sweep: whether the sweep it belongs to gives it its folder, in place of this one.
        chosen: whether `output_dir` was given by hand for a job of a sweep, and not looked at yet.
        unique: whether the folder may get another name where this one is taken.
        resume: whether to go on with the run in `output_dir`.
        trains: whether the job is one that writes checkpoints.
        changes: what differs from the run it goes on with, one line each.
        checkpoint: the file, or the folder whose newest checkpoint, the run starts from.
        name, group, tags: what trackers call the run; the group is the sweep it belongs to.
        title: what tells a job from the others of its sweep, where their names are all the same.
        untyped: settings of W&B that nobody has typed.
    """

    config: dict[str, Any]
    hparams: dict[str, Any]
    output_dir: Path
    in_sweep: bool
    chosen: bool
    unique: bool
    resume: bool
    trains: bool
    changes: list[str]
    checkpoint: Path | None
    name: str
    group: str | None
    tags: list[str]
    title: str = ""
    untyped: tuple[str, ...] = ()
