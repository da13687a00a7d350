"""The plan of one run: checked plain data, independent of Hydra."""

from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any


class Mode(Enum):
    """How a run gets its folder."""

    NEW = auto()  # create it; it must not exist
    UNIQUE = auto()  # create it, with a suffix if the name is in use
    RESUME = auto()  # resume the run in it
    SWEEP = auto()  # the sweep will assign one
    CHOSEN = auto()  # output_dir of a job of a sweep; the sweep has not checked it yet
    ASSIGNED = auto()  # assigned by the sweep; it holds at least the run's configuration


@dataclass(frozen=True)
class Output:
    """The folder of a run."""

    path: Path
    mode: Mode
    run_id: str | None = None  # of the run in it

    @property
    def begun(self) -> bool:
        """Whether the folder exists, with the configuration of this run."""
        return self.mode in (Mode.RESUME, Mode.ASSIGNED)

    @property
    def in_sweep(self) -> bool:
        """Whether the sweep assigns the folder."""
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
        title: distinguishes a job of a sweep if all jobs have the same name.
        unset_wandb_keys: keys of tracker.wandb that neither the command line nor a file sets.
        own_folder: that `--config-dir` names, for the processes of the run.
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
    unset_wandb_keys: tuple[str, ...] = ()
    own_folder: Path | None = None
