"""What a job of Slurm does: one job of a sweep, and back into the queue when it is driven out."""

import os
import subprocess
from dataclasses import dataclass

from submitit.helpers import DelayedSubmission

from ddpm.runner.distributed import ranks
from ddpm.runner.execution.execute import Preempted
from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.run_job import attempt

SECONDS = 60  # that an answer of Slurm may take


@dataclass
class Task:
    """Runs the job from where its folder says it stands.

    Near the time limit submitit's handler of SIGUSR2, called when the run has saved, asks for a
    `checkpoint` and queues the job again. A job that is pre-empted and ends in the time of grace
    counts as over to Slurm: it is queued again here. One that somebody has cancelled is not.
    """

    job: Job

    def __call__(self) -> None:
        try:
            attempt(self.job)
        except Preempted as stop:
            if (
                ranks.is_rank_zero() and _state() == "RUNNING"
            ):  # else Slurm itself is at it, or a person
                _ask("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
            raise SystemExit(128 + stop.signal) from None
        if self.job.error is not None:
            raise SystemExit(1)

    def checkpoint(self) -> DelayedSubmission:
        """The same again: how far it came is in the run's folder."""
        return DelayedSubmission(Task(self.job))


def _state() -> str:
    """What Slurm thinks of this job: RUNNING, COMPLETING, ..."""
    words = _ask("scontrol", "-o", "show", "job", os.environ["SLURM_JOB_ID"]).split()
    return next((word[9:] for word in words if word.startswith("JobState=")), "")


def _ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return done.stdout
