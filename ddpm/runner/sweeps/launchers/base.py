"""Common to all launchers: compose the jobs, have them run, return what Hydra expects."""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from ddpm.errors import InputError, nearest
from ddpm.runner.config import catalog
from ddpm.runner.config.composed import to_dict
from ddpm.runner.runs.state import FINISHED, counted
from ddpm.runner.sweeps import callback
from ddpm.runner.sweeps.compose import Job, compose_jobs, name_jobs
from ddpm.runner.sweeps.launchers.job_queue import JobList, Runner
from ddpm.runner.sweeps.run_job import final_loss


def launch(
    runner: Runner,
    config: DictConfig,
    context: HydraContext,
    overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """Compose jobs and run them; the results include those of jobs that were finished before."""
    from ddpm.runner.report.status import common_overrides  # imports numpy

    prepare(config)
    composed = compose_jobs(config, context, overrides, first, begins=first == 0)
    jobs = [job for job in composed if job.repeats is None]
    callback.jobs += jobs
    common = common_overrides([job.overrides for job in jobs])
    for job in jobs:
        job.title = " ".join(word for word in job.overrides if word not in common)
    name_jobs(jobs)
    _announce(jobs, common, config)
    _announce_repeats(composed)
    with env_override(config.hydra.job.env_set):
        runner.run(JobList(jobs))
    return [_returned(job) for job in composed]


def register_default_launcher() -> None:
    """Replace Hydra's default launcher by ours in this process. An `override` in conf/config.yaml
    would do so too, but teams and experiments could not override it again."""
    Plugins.instance()  # registers Hydra's own launcher first
    node = {"_target_": "hydra_plugins.ddpm_sweeps.Serial"}
    ConfigStore.instance().store(group="hydra/launcher", name="basic", node=node, provider="ddpm")


def own_settings(name: str, settings: dict[str, Any], config: DictConfig) -> dict[str, Any]:
    """The settings that a launcher has, as plain data. A team's file may set those of several.

    Raises:
        InputError: the command line sets one that this launcher does not have.
    """
    known = catalog.read(catalog.CONF / "hydra" / "launcher" / f"{name}.yaml")
    plain = plain_settings(settings)
    for key in plain.keys() - known.keys():
        full = f"hydra.launcher.{key}"
        if any(word.lstrip("+").startswith(f"{full}=") for word in config.hydra.overrides.hydra):
            hint = nearest(key, known.keys() - {"_target_"})
            raise InputError(f"{full}: hydra/launcher={name} has no such key.{hint}")
    return {key: value for key, value in plain.items() if key in known}


def plain_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with Hydra's lists and dictionaries converted to Python's."""
    return to_dict(OmegaConf.create(settings), resolve=True)


def prepare(config: DictConfig) -> None:
    """The setup that Hydra expects of a launcher."""
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)


def _announce(jobs: list[Job], common: list[str], config: DictConfig) -> None:
    states = [job.state for job in jobs]
    counts = f": {counted(states)}" if any(state in FINISHED for state in states) else ""
    noun = "job" if len(jobs) == 1 else "jobs"
    print(f"sweep    {len(jobs)} {noun} in {config.hydra.sweep.dir}{counts}", flush=True)
    if common:
        print(f"all with {' '.join(common)}", flush=True)
    for job in jobs:
        if job.error is not None:
            print(f"refused  job {job.number}, {job.text}\n{job.error}", flush=True)


def _announce_repeats(jobs: list[Job]) -> None:
    if repeats := [f"{job.number} (as {job.repeats})" for job in jobs if job.repeats is not None]:
        noun = "job is" if len(repeats) == 1 else "jobs are"
        more = f" and {len(repeats) - 8} more" if len(repeats) > 8 else ""
        numbers = ", ".join(repeats[:8]) + more
        print(f"once     {len(repeats)} {noun} equal to another and not run again: {numbers}")


def _returned(job: Job) -> JobReturn:
    """The result of a job; the value of a failed job is None, which a sweeper has to accept."""
    result = JobReturn()
    result.overrides = job.overrides
    result.working_dir = str(job.folder)
    result.return_value = final_loss(job)
    result.status = JobStatus.COMPLETED
    return result
