"""The sweep of this process: set when Hydra starts it, read by the launchers and by `cli`.

Its state is global: Hydra itself creates the callback and the launcher, and returns nothing.
"""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from ddpm.errors import InputError
from ddpm.runner.config import redaction
from ddpm.runner.config.paths import as_text, check_sweep_name
from ddpm.runner.distributed import ranks
from ddpm.runner.runs import run_dir
from ddpm.runner.sweeps.compose import Job

folder: Path | None = None  # None: this process runs no sweep
jobs: list[Job] = []  # of this command; empty if a third-party launcher ran them in its processes


def forget() -> None:
    """Reset to no sweep."""
    global folder
    folder = None
    jobs.clear()


def no_sweep(job: str) -> str:
    """The message for a sweep over a job that only reads runs."""
    return f"job={job}: reads runs and cannot be a sweep; leave out -m."


class Record(Callback):
    """Hydra callback that checks the sweep and sets its folder."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global folder
        forget()
        try:
            redaction.check_config(config)  # before Hydra writes it to multirun.yaml
            check_sweep_name(config.sweep)
            if config.kind == "reads":
                raise InputError(no_sweep(config.hydra.runtime.choices.job))
            _check_single_process()
            folder = Path(as_text(config.hydra.sweep.dir))
            run_dir.check_writable(folder, "hydra.sweep.dir")
        except InputError as error:
            if ranks.is_local_rank_zero():
                print(error, file=sys.stderr)
            sys.exit(2)  # Hydra turns other exceptions into warnings
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweep.dir = str(folder)  # Hydra creates the folder without expanding `~`


def _check_single_process() -> None:
    """Refuse a sweep in processes of torchrun or srun.

    Raises:
        InputError: this is one of several such processes.
    """
    if ranks.external():
        raise InputError(
            "A sweep (-m) runs in one process, not under torchrun or srun. hardware=ddp starts "
            "processes for each job; hydra/launcher=slots or slurm runs jobs in parallel."
        )
