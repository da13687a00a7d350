"""What all launchers have in common: jobs are frozen, run, and returned as Hydra wants them."""

from collections.abc import Callable, Sequence

from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig

from ddpm.sweeps import record
from ddpm.sweeps.attempt import figure
from ddpm.sweeps.folder import OVER
from ddpm.sweeps.freeze import Job, freeze
from ddpm.sweeps.queue import Listed, Queue
from ddpm.sweeps.table import shared, sums


def launch(
    run: Callable[[Queue], None],
    config: DictConfig,
    context: HydraContext,
    overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """Freeze jobs and run them; what each returned, also those that were over before."""
    prepare(config)
    jobs = freeze(config, context, overrides, first)
    record.jobs += jobs
    common = shared([job.words for job in jobs])
    for job in jobs:
        job.title = " ".join(word for word in job.words if word not in common)
    _announce(jobs, common, config)
    with env_override(config.hydra.job.env_set):
        run(Listed(jobs))
    return [_returned(job) for job in jobs]


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


def _returned(job: Job) -> JobReturn:
    """A failed job returns None: a sweeper that wants a number has to bear it."""
    result = JobReturn()
    result.overrides = job.words
    result.working_dir = str(job.folder)
    result.return_value = figure(job)
    result.status = JobStatus.COMPLETED
    return result
