"""One job after the other, in this process."""

from collections.abc import Iterable

from ddpm.sweeps.attempt import attempt
from ddpm.sweeps.freeze import Job


def run(jobs: Iterable[Job]) -> None:
    """Run all jobs that are not over. A failure does not stop those after it.

    Raises:
        Preempted: a job was asked to stop; those after it do not begin.
    """
    for job in jobs:
        print()
        attempt(job)
