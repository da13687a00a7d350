"""What all launchers have in common: jobs are frozen, run, and returned as Hydra wants them."""

from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from ddpm.errors import InputError, nearest
from ddpm.runner.config import catalog
from ddpm.runner.sweeps import callback
from ddpm.runner.sweeps.compose import Job, freeze
from ddpm.runner.sweeps.folder import OVER
from ddpm.runner.sweeps.launchers.job_queue import Listed, Queue
from ddpm.runner.sweeps.naming import name_jobs
from ddpm.runner.sweeps.run_job import figure
from ddpm.runner.sweeps.summary import shared, sums


def launch(
    run: Callable[[Queue], None],
    config: DictConfig,
    context: HydraContext,
    overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """Freeze jobs and run them; what each returned, also those that were over before."""
    prepare(config)
    jobs = freeze(config, context, overrides, first, begins=first == 0)
    callback.jobs += jobs
    common = shared([job.words for job in jobs])
    for job in jobs:
        job.title = " ".join(word for word in job.words if word not in common)
    name_jobs(jobs)
    _announce(jobs, common, config)
    with env_override(config.hydra.job.env_set):
        run(Listed(jobs))
    return [_returned(job) for job in jobs]


def ours_by_default() -> None:
    """Let Hydra's default launcher be ours, in this process. An `override` in conf/config.yaml
    would do it, too, but bind the files of teams and experiments."""
    Plugins.instance()  # its own launcher is entered by this, and not again later
    node = {"_target_": "hydra_plugins.ddpm_sweeps.Serial"}
    ConfigStore.instance().store(group="hydra/launcher", name="basic", node=node, provider="ddpm")


def own_knobs(name: str, knobs: dict[str, Any], config: DictConfig) -> dict[str, Any]:
    """Those knobs that a launcher has, as plain data. A team's file may set those of several.

    Raises:
        InputError: the command line sets one that it has not.
    """
    plain = OmegaConf.to_container(OmegaConf.create(knobs), resolve=True)
    known = catalog.read(catalog.CONF / "hydra" / "launcher" / f"{name}.yaml")
    for key in plain.keys() - known.keys():
        full = f"hydra.launcher.{key}"
        if any(word.lstrip("+").startswith(f"{full}=") for word in config.hydra.overrides.hydra):
            hint = nearest(key, known.keys() - {"_target_"})
            raise InputError(f"{full}: hydra/launcher={name} has no such key.{hint}")
    return {key: value for key, value in plain.items() if key in known}


def prepare(config: DictConfig) -> None:
    """What Hydra expects of whoever launches jobs."""
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)


def _announce(jobs: list[Job], common: list[str], config: DictConfig) -> None:
    states = [job.state for job in jobs]
    word = "job" if len(jobs) == 1 else "jobs"
    told = f": {sums(states)}" if any(state in OVER for state in states) else ""
    print(f"sweep    {len(jobs)} {word} in {config.hydra.sweep.dir}{told}", flush=True)
    if common:
        print(f"all with {' '.join(common)}", flush=True)
    for job in jobs:
        if job.error is not None:
            print(f"refused  {job.text}\n{job.error}", flush=True)


def _returned(job: Job) -> JobReturn:
    """A failed job returns None: a sweeper that wants a number has to bear it."""
    result = JobReturn()
    result.overrides = job.words
    result.working_dir = str(job.folder)
    result.return_value = figure(job)
    result.status = JobStatus.COMPLETED
    return result
