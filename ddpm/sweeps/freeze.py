"""From the words of a sweep to its jobs: every configuration is composed before the first job runs.

What files under conf/ say later changes nothing any more: a job is a plan, plain data.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write

from ddpm import mistakes, private, run_dir
from ddpm.config import plan
from ddpm.plan import Plan
from ddpm.sweeps.folder import OVER, SweepFolder


@dataclass
class Job:
    """One job of a sweep.

    Args:
        number: its place in the sweep, as in the name of its folder.
        words: what the command line says of it.
        folder: where it works; None where its configuration was refused.
        plan: None where its configuration was refused; `error` says why.
        title: those of the words that tell it from the others.
        succeeded: whether it has come to its end in this sweep; an export leaves no other sign.
    """

    number: int
    words: list[str]
    folder: Path | None = None
    plan: Plan | None = None
    error: str | None = None
    succeeded: bool = False
    title: str = ""

    @property
    def state(self) -> str:
        """How its folder says it stands; "running" is only what a process holds."""
        if self.error is not None:
            return "failed"
        if self.folder is None:
            return "waiting"
        if run_dir.is_locked(self.folder):
            return "running"
        otherwise = "done" if self.succeeded else "waiting"
        state = run_dir.read_status(self.folder).get("state", otherwise)
        return "killed" if state == "running" else state

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do. A run that is named by its folder may be given more
        steps."""
        return self.plan is not None and self.plan.in_sweep and self.state in OVER

    @property
    def text(self) -> str:
        """What it is called in messages."""
        return self.title or " ".join(self.words)


def freeze(
    config: DictConfig, context: HydraContext, overrides: Sequence[Sequence[str]], first: int
) -> list[Job]:
    """Compose, check and place all jobs. A mistake in one is kept with it, the others go on.

    Args:
        config: of the sweep, as Hydra composed it.
        overrides: of each job.
        first: number of the first one.
    """
    path = Path(config.hydra.sweep.dir)
    before = HydraConfig.instance().cfg
    try:
        with SweepFolder(path, subdir) as folder:
            return [
                _freeze_one(config, context, list(words), number, folder)
                for number, words in enumerate(overrides, start=first)
            ]
    finally:
        HydraConfig.instance().cfg = before


def _freeze_one(
    config: DictConfig, context: HydraContext, words: list[str], number: int, folder: SweepFolder
) -> Job:
    composed = context.config_loader.load_sweep_config(config, words)
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    HydraConfig.instance().set_config(composed)
    job = Job(number, private.as_typed(HydraConfig.get()))
    try:
        job.plan = plan(without_hydra(composed))
        job.words = job.plan.config["overrides"]
        place(job, folder)
    except Exception as error:
        job.error = mistakes.explain(error)
        if job.error is None:
            raise
        job.plan = None
        job.folder = folder.refuse(job.words, number, job.error)
    return job


def place(job: Job, folder: SweepFolder) -> None:
    """Give a job its folder in the sweep, unless its command line names another one."""
    if job.plan.in_sweep:
        job.plan = folder.take(job.plan, job.number)
    if not job.plan.unique:
        job.folder = job.plan.output_dir


def subdir(number: int) -> str:
    """The name of a job's folder, by the pattern of `hydra.sweep.subdir`."""
    hydra_config = HydraConfig.get()
    with read_write(hydra_config), open_dict(hydra_config):
        before, hydra_config.job.num = hydra_config.job.num, number
        try:
            return str(hydra_config.sweep.subdir)
        finally:
            hydra_config.job.num = before


def without_hydra(config: DictConfig) -> DictConfig:
    """What a run is made of, as a function under `hydra.main` is given it."""
    own: Any = copy.deepcopy(config)
    with read_write(own), open_dict(own):
        del own["hydra"]
    return own
