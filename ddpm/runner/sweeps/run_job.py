"""Run one job of a sweep; a failure is recorded in its folder and does not stop the other jobs."""

import contextlib
import traceback
from pathlib import Path

from omegaconf import DictConfig

from ddpm.runner import own_folder
from ddpm.runner.config import explain, validate
from ddpm.runner.config.composed import hydra_config
from ddpm.runner.distributed import ranks
from ddpm.runner.execution.execute import Preempted, execute
from ddpm.runner.runs import requests, run_dir
from ddpm.runner.runs.metrics_log import final, values
from ddpm.runner.sweeps import callback, compose
from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.folder import SweepFolder, locked_message
from ddpm.runner.terminal import streams


def run_job(job: Job) -> None:
    """Run a job, unless it is finished or another process runs it; print the outcome.

    Raises:
        Preempted: the whole sweep was asked to stop.
    """
    streams.protect()  # launchers may have started this process
    if job.plan is None:
        return  # its error was printed before
    state = job.state
    if job.finished:
        print(finished_message(job), flush=True)
        return
    # Other ranks join the run that holds the folder.
    if state == "running" and ranks.is_rank_zero():
        print(locked_message(job.folder), flush=True)
        return
    try:
        result = execute(job.plan)
        job.succeeded = result is None or result["state"] == "done"
    except run_dir.Busy:  # another process was faster
        print(locked_message(job.folder), flush=True)
    except Preempted:
        if job.folder is None or requests.end_state(job.folder) is None:
            raise
        # The stop file asks for the end of this job alone.
    except Exception as error:
        message = explain.explain(error)
        if message is None:
            traceback.print_exception(error)
        else:
            print(message, flush=True)
        job.error = message or repr(error)
        if job.folder is not None and not run_dir.is_locked(job.folder):
            record_failure(job)


def finished_message(job: Job) -> str:
    """The line about a job that was finished before this command."""
    return f"{job.state:8} {job.folder} was {job.state} before: {job.text}"


def run_composed(cfg: DictConfig) -> float | None:
    """The same for third-party launchers, which compose each job when it starts."""
    own_folder.use(validate.own_folder())  # this process may be the launcher's
    job = Job(hydra_config().job.num, compose.typed_overrides(cfg))
    with SweepFolder(Path(hydra_config().sweep.dir), compose.subdir) as folder:
        compose.plan_job(job, cfg, folder)
        if job.error is not None:
            job.folder = folder.record_refusal(job.overrides, job.number, job.error)
    callback.jobs.append(job)
    run_job(job)
    return final_loss(job)


def final_loss(job: Job) -> float | None:
    """The final loss of a job, if it has logged any."""
    return None if job.folder is None else final(values(job.folder))


def record_failure(job: Job) -> None:
    """Record an error in the job's folder in the sweep, for a run that could not do so itself.
    A full disk must not stop the jobs that follow."""
    if job.folder is not None and job.plan is not None and job.plan.output.in_sweep:
        with contextlib.suppress(OSError):
            run_dir.change_status(job.folder, state="failed", error=job.error)
