"""A checked run as plain data: everything that runs it needs to know, without Hydra."""

from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any


class Mode(Enum):
    """How a run gets its folder."""

    NEW = auto()  # it is made; it must not exist
    UNIQUE = auto()  # it is made, under another name if this one is taken
    RESUME = auto()  # a run began in it and goes on
    SWEEP = auto()  # the sweep will assign one
    CHOSEN = auto()  # named for one job of a sweep, which has not looked into it yet
    ASSIGNED = auto()  # by the sweep; it holds the run's configuration, and perhaps more


@dataclass(frozen=True)
class Output:
    """The folder of a run."""

    path: Path
    mode: Mode
    run_id: str | None = None  # of the run that began in it

    @property
    def begun(self) -> bool:
        """Whether the folder is there, with the configuration of this run."""
        return self.mode in (Mode.RESUME, Mode.ASSIGNED)

    @property
    def in_sweep(self) -> bool:
        """Whether the folder is the sweep's to assign."""
        return self.mode in (Mode.SWEEP, Mode.ASSIGNED)

    @property
    def unique(self) -> bool:
        return self.mode is Mode.UNIQUE


@dataclass(frozen=True)
class Plan:
    """One run.

    Args:
        config: resolved; `config["job"]` holds all that the job is built from.
        hparams: the same without the copies of parts in the job and with environment variables by
            name: for files and trackers.
        output: the run's folder.
        trains: whether the job writes checkpoints.
        changes: differences from the run that is resumed, one line each.
        checkpoint: the file, or the folder whose newest checkpoint, the run starts from.
        name, group, tags: of the run in trackers; the group is the sweep it belongs to.
        title: tells a job from the others of its sweep, where their names are all the same.
        untyped: settings of W&B that nobody has typed.
    """

    config: dict[str, Any]
    hparams: dict[str, Any]
    output: Output
    trains: bool
    changes: list[str]
    checkpoint: Path | None
    name: str
    group: str | None
    tags: list[str]
    title: str = ""
    untyped: tuple[str, ...] = ()
