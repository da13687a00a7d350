"""A sweep's job as a job of Slurm; requeued when it is preempted."""

import os
import subprocess
from dataclasses import dataclass

from submitit.helpers import DelayedSubmission

from ddpm.runner.distributed import ranks
from ddpm.runner.execution.execute import Preempted
from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.run_job import run_job

TIMEOUT_SECONDS = 60  # for an answer of Slurm


@dataclass
class Task:
    """Runs the job, which resumes from its folder.

    Near the time limit, submitit's handler of SIGUSR2, called when the run has saved, asks for a
    `checkpoint` and requeues the job. A preempted job that ends within the grace time counts as
    completed for Slurm, so it is requeued here. A cancelled job is not.
    """

    job: Job

    def __call__(self) -> None:
        try:
            run_job(self.job)
        except Preempted as stop:
            # In another state, Slurm is requeueing it already, or a user has cancelled it.
            if ranks.is_rank_zero() and _job_state() == "RUNNING":
                _output_of("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
            raise SystemExit(128 + stop.signal) from None
        if self.job.error is not None:
            raise SystemExit(1)

    def checkpoint(self) -> DelayedSubmission:
        """The same task again: its progress is in the run's folder."""
        return DelayedSubmission(Task(self.job))


def _job_state() -> str:
    """Slurm's state of this job: RUNNING, COMPLETING, ..."""
    fields = _output_of("scontrol", "-o", "show", "job", os.environ["SLURM_JOB_ID"]).split()
    prefix = "JobState="
    return next((field.removeprefix(prefix) for field in fields if field.startswith(prefix)), "")


def _output_of(*command: str) -> str:
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    return result.stdout
