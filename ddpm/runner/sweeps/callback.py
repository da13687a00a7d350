"""The sweep that this process runs: noted when Hydra begins it, told of when it ends."""

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
            redaction.check_config(config)  # before Hydra writes it to multirun.yaml
            check_sweep_name(config.sweep)
            if (job := config.hydra.runtime.choices.job) in ("status", "report"):
                raise InputError(f"job={job}: looks at a sweep and is none; leave out -m.")
            _check_alone()
            folder = Path(as_text(config.hydra.sweep.dir))
            run_dir.check_writable(folder, "hydra.sweep.dir")
        except InputError as error:
            if ranks.is_local_rank_zero():
                print(error, file=sys.stderr)
            sys.exit(2)  # of other exceptions Hydra makes a warning
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweep.dir = str(folder)  # Hydra makes this folder, and knows no `~`


def _check_alone() -> None:
    """See that no other process runs the same sweep in lockstep.

    Raises:
        InputError: this is one of several that torchrun or srun have started.
    """
    if ranks.external():
        raise InputError(
            "A sweep (-m) is run by one process, not by those of torchrun or srun: hardware=ddp "
            "gives each job its processes, hydra/launcher=slots or slurm run jobs side by side."
        )
