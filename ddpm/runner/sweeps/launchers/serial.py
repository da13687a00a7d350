"""One job after the other, in this process."""

from ddpm.runner.sweeps.launchers.job_queue import Queue
from ddpm.runner.sweeps.run_job import run_job


class Serial:
    """The runner of `hydra/launcher=serial`."""

    def run(self, queue: Queue) -> None:
        while (job := queue.next()) is not None:
            print()
            run_job(job)
            queue.ended(job)
