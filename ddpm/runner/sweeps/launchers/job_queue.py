"""Where a launcher gets its jobs from, one at a time: a list, or a search that reads results; and
the launcher that runs them in this process, one after the other."""

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.run_job import run_job


class Queue(Protocol):
    """Jobs to run."""

    def next(self) -> Job | None:
        """The next job; None: no more will come."""

    def ended(self, job: Job) -> None:
        """Called when a job has ended in any way, or did not have to run."""


class JobList:
    """The jobs of a command, all known before the first one runs."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.jobs = deque(jobs)

    def next(self) -> Job | None:
        return self.jobs.popleft() if self.jobs else None

    def ended(self, job: Job) -> None:
        pass


class Runner(Protocol):
    """Runs jobs: serially in this process, or in parallel in others."""

    def run(self, queue: Queue) -> None:
        """Run all jobs that are not finished. A failed job does not stop those that follow.

        Raises:
            Preempted: the sweep was asked to stop; the remaining jobs do not start.
        """


class Serial:
    """The runner of `hydra/launcher=serial`."""

    def run(self, queue: Queue) -> None:
        while (job := queue.next()) is not None:
            print()
            run_job(job)
            queue.ended(job)
