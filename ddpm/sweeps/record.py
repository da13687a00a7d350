"""The sweep that this process runs: noted when Hydra begins it, told of when it ends."""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ddpm import private
from ddpm.errors import InputError
from ddpm.sweeps import folder as sweep_folder
from ddpm.sweeps.freeze import Job

folder: Path | None = None  # None: this process runs no sweep
jobs: list[Job] = []  # those of its command; none, where another launcher keeps them to itself


def forget() -> None:
    """No sweep has begun."""
    global folder
    folder = None
    jobs.clear()


class Record(Callback):
    """Checks and notes the sweep; Hydra calls it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global folder
        forget()
        try:
            private.check_config(config)  # before Hydra writes it to multirun.yaml
            sweep_folder.check_name(config.sweep)
            _check_alone()
        except InputError as error:
            print(error, file=sys.stderr)
            sys.exit(2)  # of other exceptions Hydra makes a warning
        folder = Path(config.hydra.sweep.dir)


def _check_alone() -> None:
    """See that no other process runs the same sweep in lockstep.

    Raises:
        InputError: this is one of several that torchrun or srun have started.
    """
    for name, starter in (("WORLD_SIZE", "torchrun"), ("SLURM_NTASKS", "srun")):
        count = os.environ.get(name, "1")
        if count.isdigit() and int(count) > 1 and (name == "SLURM_NTASKS" or _by_torchrun()):
            raise InputError(
                f"A sweep (-m) cannot be run by the {count} processes of {starter}. Start it as "
                "one process: hardware=ddp gives each job its processes, hydra/launcher=slots or "
                "slurm run jobs side by side."
            )


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
