"""Compose all jobs of a sweep before the first one runs.

Each job becomes a plan, plain data: later changes of files under conf/ do not affect it.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write

from ddpm.errors import InputError
from ddpm.runner.config import base_run, explain
from ddpm.runner.config.composed import hydra_config
from ddpm.runner.config.paths import file_name
from ddpm.runner.config.plan import Mode, Plan
from ddpm.runner.config.planning import plan
from ddpm.runner.config.request import INHERITED, typed
from ddpm.runner.config.wandb_settings import PLACE
from ddpm.runner.runs import run_dir, state
from ddpm.runner.safe_io.tree import get_path
from ddpm.runner.sweeps.folder import SweepFolder, resume_in
from ddpm.trackers.wandb_client import limits


@dataclass
class Job:
    """One job of a sweep.

    Args:
        number: its index in the sweep, as in the name of its folder.
        overrides: of its command line.
        folder: its run folder; None where it has none yet, or is an export.
        plan: None if the configuration was refused, with the reason in `error`.
        succeeded: it has ended well in this process; the only sign that an export leaves.
        title: the overrides that distinguish it from the other jobs.
        repeats: the number of an earlier job of the command that is equal in every key; the two
            are one run.
    """

    number: int
    overrides: list[str]
    folder: Path | None = None
    plan: Plan | None = None
    error: str | None = None
    succeeded: bool = False
    title: str = ""
    repeats: int | None = None

    @property
    def state(self) -> str:
        """The state of its folder; "running" while any process holds that."""
        if self.error is not None:
            return "failed"
        default = "done" if self.succeeded else "waiting"
        if self.folder is None:
            return default
        if run_dir.is_locked(self.folder):
            return "running"
        return state.current(self.folder, run_dir.read_status(self.folder), default)

    @property
    def finished(self) -> bool:
        """Whether the job is not to be run again. A run whose folder the command line names may be
        given more steps, so it is never finished."""
        return self.plan is not None and self.plan.output.in_sweep and self.state in state.FINISHED

    @property
    def refused(self) -> bool:
        """Whether its values are not allowed, so that it cannot run."""
        return self.plan is None and self.error is not None

    @property
    def text(self) -> str:
        """Its name in messages."""
        return self.title or " ".join(self.overrides)


def compose_jobs(
    config: DictConfig,
    context: HydraContext,
    overrides: Sequence[Sequence[str]],
    first: int,
    *,
    begins: bool = False,
) -> list[Job]:
    """Compose and check all jobs and assign their folders. An invalid job keeps its error.

    Args:
        config: of the sweep, composed by Hydra.
        overrides: of each job.
        first: number of the first job.
        begins: whether these are the first jobs of the command.

    Raises:
        InputError: all of the first jobs are invalid.
    """
    sweep_config = HydraConfig.instance().cfg
    try:
        with SweepFolder(Path(config.hydra.sweep.dir), subdir, begins=begins) as folder:
            jobs = [
                _compose_job(config, context, list(words), number, folder)
                for number, words in enumerate(overrides, start=first)
            ]
            _mark_repeats(jobs)
            errors = [job.error for job in jobs if job.error is not None]
            if begins and len(errors) == len(jobs):
                raise InputError(_merged(errors))
            for job in jobs:
                if job.error is not None:
                    job.folder = folder.record_refusal(job.overrides, job.number, job.error)
            return jobs
    finally:
        HydraConfig.instance().cfg = sweep_config


def _mark_repeats(jobs: Sequence[Job]) -> None:
    """Mark the jobs to which the sweep has assigned the folder of an earlier one."""
    first: dict[Path, int] = {}
    for job in jobs:
        if job.folder is not None and job.plan is not None and job.plan.output.in_sweep:
            number = first.setdefault(job.folder, job.number)
            job.repeats = number if number != job.number else None


def name_jobs(jobs: Sequence[Job]) -> None:
    """Shorten names that are too long for W&B to the overrides that distinguish a job, and set the
    plan's title to these where several jobs would share a given name.

    A single job may be one of several commands for the same sweep, so it counts as one of several.
    """
    plans = [(job, job.plan) for job in jobs if job.plan is not None]
    names = [get_path(planned.config, f"{PLACE}.name") for _, planned in plans]
    for (job, planned), name in zip(plans, names, strict=True):
        title = limits.title_of(job.title.split(" "))
        shared = name is not None and (len(plans) == 1 or names.count(name) > 1)
        job.plan = replace(
            planned,
            name=planned.name if len(planned.name) <= limits.NAME else title or planned.name,
            title=(title or str(job.number)) if shared else "",
        )


def _merged(errors: Sequence[str]) -> str:
    """Up to four distinct lines of the errors."""
    lines = list(dict.fromkeys(line for error in errors for line in error.splitlines()))
    if len(lines) > 4:
        lines[3:] = [f"... and {len(lines) - 3} more lines like these."]
    return "\n".join(lines)


def _compose_job(
    config: DictConfig, context: HydraContext, words: list[str], number: int, folder: SweepFolder
) -> Job:
    composed = context.config_loader.load_sweep_config(config, [*words, *_of_source(words)])
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    HydraConfig.instance().set_config(composed)
    job_config = without_hydra(composed)
    job = Job(number, typed_overrides(job_config))
    plan_job(job, job_config, folder)
    return job


def _of_source(words: list[str]) -> list[str]:
    """The options of a source that this job has and others have not: init_from=one,other."""
    known = any(word.startswith(f"{INHERITED}=") for word in words)
    begins = any(word.startswith("init_from=") for word in words)
    return base_run.inherited(words, must_exist=False) if begins and not known else []


def plan_job(job: Job, config: DictConfig, folder: SweepFolder) -> None:
    """Plan a job and assign its folder. A mistake of the user becomes its `error`."""
    try:
        job.plan = _assigned(plan(config), job.number, folder)
        job.overrides = job.plan.config["overrides"]
        if not job.plan.output.unique:
            job.folder = job.plan.output.path
    except Exception as error:
        job.error = explain.explain(error)
        if job.error is None:
            raise


def _assigned(planned: Plan, number: int, folder: SweepFolder) -> Plan:
    """The plan in its folder in the sweep, or in the one that the command line names; it resumes
    if it began there.

    Raises:
        InputError: the folder belongs to another run.
    """
    if planned.output.in_sweep:
        return folder.assign(planned, number)
    return resume_in(planned) if planned.output.mode is Mode.CHOSEN else planned


def typed_overrides(cfg: DictConfig) -> list[str]:
    """The overrides of a job that the user typed, without the name of the sweep."""
    return [word for word in typed(cfg) if not word.startswith("sweep=")]


def subdir(number: int, choices: Mapping[str, Any] | None = None) -> str:
    """The name of a job's folder from `hydra.sweep.subdir`, cut to the length of a file name.

    Args:
        choices: of the job, where a checkpoint replaces those that Hydra composed.
    """
    config = hydra_config()
    with read_write(config), open_dict(config):
        saved = config.job.num, dict(config.runtime.choices)
        config.job.num = number
        config.runtime.choices = saved[1] | dict(choices or {})
        try:
            return file_name(str(config.sweep.subdir))
        finally:
            config.job.num, config.runtime.choices = saved


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy without the node `hydra`, as `hydra.main` passes it to a function."""
    job_config: Any = copy.deepcopy(config)
    with read_write(job_config), open_dict(job_config):
        del job_config["hydra"]
    return job_config
