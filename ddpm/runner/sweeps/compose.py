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

from ddpm.errors import InputError
from ddpm.runner.config import explain
from ddpm.runner.config.paths import file_name
from ddpm.runner.config.plan import Mode, Plan
from ddpm.runner.config.planning import plan
from ddpm.runner.config.request import typed
from ddpm.runner.runs import run_dir
from ddpm.runner.sweeps.folder import OVER, SweepFolder, go_on


@dataclass
class Job:
    """One job of a sweep.

    Args:
        number: its place in the sweep, as in the name of its folder.
        words: what the command line says of it.
        folder: where it works; None where it has none yet.
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
        return self.plan is not None and self.plan.output.in_sweep and self.state in OVER

    @property
    def text(self) -> str:
        """What it is called in messages."""
        return self.title or " ".join(self.words)


def freeze(
    config: DictConfig,
    context: HydraContext,
    overrides: Sequence[Sequence[str]],
    first: int,
    *,
    begins: bool = False,
) -> list[Job]:
    """Compose, check and place all jobs. A mistake in one is kept with it, the others go on.

    Args:
        config: of the sweep, as Hydra composed it.
        overrides: of each job.
        first: number of the first one.
        begins: whether these are the first jobs of the command.

    Raises:
        InputError: there is a mistake in every one of several.
    """
    before = HydraConfig.instance().cfg
    try:
        with SweepFolder(Path(config.hydra.sweep.dir), subdir, begins=begins) as folder:
            jobs = [
                _freeze_one(config, context, list(words), number, folder)
                for number, words in enumerate(overrides, start=first)
            ]
            if begins and all(job.error is not None for job in jobs):
                raise InputError(_all_wrong(jobs))
            for job in jobs:
                if job.error is not None:
                    job.folder = folder.refuse(job.words, job.number, job.error)
            return jobs
    finally:
        HydraConfig.instance().cfg = before


def _all_wrong(jobs: list[Job]) -> str:
    """What is wrong with all jobs, each thing once."""
    lines = dict.fromkeys(line for job in jobs for line in (job.error or "").splitlines())
    more = [f"... and {len(lines) - 3} more lines like these."] if len(lines) > 4 else []
    return "\n".join([*list(lines)[: 3 if more else 4], *more])


def _freeze_one(
    config: DictConfig, context: HydraContext, words: list[str], number: int, folder: SweepFolder
) -> Job:
    composed = context.config_loader.load_sweep_config(config, words)
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    HydraConfig.instance().set_config(composed)
    own = without_hydra(composed)
    job = Job(number, words_of(own))
    try:
        job.plan = plan(own)
        job.words = job.plan.config["overrides"]
        place(job, folder)
    except Exception as error:
        job.error = explain.explain(error)
        if job.error is None:
            raise
        job.plan = None
    return job


def words_of(cfg: DictConfig) -> list[str]:
    """The overrides of a job that its user typed, without the name of the sweep."""
    return [word for word in typed(cfg) if not word.startswith("sweep=")]


def place(job: Job, folder: SweepFolder) -> None:
    """Give a job its folder in the sweep, or the one that its command line names: there, too, it
    goes on if it has begun.

    Raises:
        InputError: that one is another run's.
    """
    if job.plan.output.in_sweep:
        job.plan = folder.take(job.plan, job.number)
    elif job.plan.output.mode is Mode.CHOSEN:
        job.plan = go_on(job.plan)
    if not job.plan.output.unique:
        job.folder = job.plan.output.path


def subdir(number: int) -> str:
    """The name of a job's folder, by the pattern of `hydra.sweep.subdir`, cut where it is made of
    more words than a name can hold."""
    hydra_config = HydraConfig.get()
    with read_write(hydra_config), open_dict(hydra_config):
        before, hydra_config.job.num = hydra_config.job.num, number
        try:
            return file_name(str(hydra_config.sweep.subdir))
        finally:
            hydra_config.job.num = before


def without_hydra(config: DictConfig) -> DictConfig:
    """What a run is made of, as a function under `hydra.main` is given it."""
    own: Any = copy.deepcopy(config)
    with read_write(own), open_dict(own):
        del own["hydra"]
    return own
