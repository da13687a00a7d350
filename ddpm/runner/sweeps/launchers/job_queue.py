"""Where a launcher gets its jobs from, one at a time: a list, or whatever looks at results."""

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from ddpm.runner.sweeps.compose import Job


class Queue(Protocol):
    """Gives out jobs, and is told when one has ended, in whatever way."""

    def next(self) -> Job | None:
        """The next job to look at; None: there will be no more."""

    def ended(self, job: Job) -> None:
        """The job has ended, or did not need to begin."""


class Listed:
    """The jobs of a command, all known before the first one begins."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.jobs = deque(jobs)

    def next(self) -> Job | None:
        return self.jobs.popleft() if self.jobs else None

    def ended(self, job: Job) -> None:
        pass
