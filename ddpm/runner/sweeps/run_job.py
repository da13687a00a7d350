"""One job of a sweep: tried, and a failure kept in its folder, so that the next one can come."""

import contextlib
import traceback
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ddpm.runner.config import explain
from ddpm.runner.config.planning import plan
from ddpm.runner.distributed import ranks
from ddpm.runner.execution.execute import Preempted, execute
from ddpm.runner.runs import run_dir, stop_file
from ddpm.runner.runs.metrics_log import final, values
from ddpm.runner.sweeps import callback, compose
from ddpm.runner.sweeps.folder import SweepFolder, elsewhere
from ddpm.runner.terminal import streams


def attempt(job: compose.Job) -> None:
    """Run a job, unless it is over or another process is at it; print what came of it."""
    streams.protect()  # launchers may have started this process
    state = job.state
    if job.plan is None:
        return  # as was told
    if job.over:
        print(f"{state:8} {job.folder} was {state} before: {job.text}", flush=True)
        return
    if state == "running" and ranks.is_rank_zero():  # the others of this run are to join it
        print(elsewhere(job.folder), flush=True)
        return
    try:
        result = execute(job.plan)
        job.succeeded = result is None or result["state"] == "done"
    except run_dir.Busy:  # it was quicker
        print(elsewhere(job.folder), flush=True)
    except Preempted:
        if job.folder is None or stop_file.end_of(job.folder) is None:
            raise
        # Somebody has asked this one job to stop, by a file: the others are to go on.
    except Exception as error:
        message = explain.explain(error)
        if message is None:
            traceback.print_exception(error)
        else:
            print(message, flush=True)
        job.error = message or repr(error)
        if job.plan.output.in_sweep and not run_dir.is_locked(job.folder):
            keep_error(job)


def attempt_composed(cfg: DictConfig) -> float | None:
    """Do the same for one job of a launcher that is not ours, which composes it just now."""
    hydra_config = HydraConfig.get()
    number = hydra_config.job.num
    job = compose.Job(number, compose.words_of(cfg))
    with SweepFolder(Path(hydra_config.sweep.dir), compose.subdir) as folder:
        try:
            job.plan = plan(cfg)
            job.words = job.plan.config["overrides"]
            compose.place(job, folder)
        except Exception as error:
            job.error = explain.explain(error)
            if job.error is None:
                raise
            job.plan, job.folder = None, folder.refuse(job.words, number, job.error)
    callback.jobs.append(job)
    attempt(job)
    return figure(job)


def figure(job: compose.Job) -> float | None:
    """The final loss of a job, if it has logged any."""
    return None if job.folder is None else final(values(job.folder))


def keep_error(job: compose.Job) -> None:
    """Note a failure in the job's folder where the run itself did not come to do so. A full disk
    must not stop the jobs that come next."""
    if job.folder is not None and job.plan.output.in_sweep:
        with contextlib.suppress(OSError):
            run_dir.change_status(job.folder, state="failed", error=job.error)
