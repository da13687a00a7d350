"""One job after the other, in this process."""

from ddpm.runner.sweeps.launchers.job_queue import Queue
from ddpm.runner.sweeps.run_job import attempt


def run(queue: Queue) -> None:
    """Run all jobs that are not over. A failure does not stop those after it.

    Raises:
        Preempted: a job was asked to stop; those after it do not begin.
    """
    while (job := queue.next()) is not None:
        print()
        attempt(job)
        queue.ended(job)
