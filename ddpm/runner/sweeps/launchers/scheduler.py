"""Run jobs in parallel in other processes: as many at a time as have room."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from ddpm.errors import InputError
from ddpm.runner.distributed.signals import GracefulStop
from ddpm.runner.execution.execute import Preempted
from ddpm.runner.runs import run_dir
from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.folder import locked_message
from ddpm.runner.sweeps.launchers.job_queue import Queue
from ddpm.runner.sweeps.launchers.live_table import LiveTable
from ddpm.runner.sweeps.run_job import finished_message, record_failure

POLL_SECONDS = 1.0


@dataclass(eq=False)
class RunningJob:
    """A job that has been started.

    Args:
        where: for messages: "on GPU 0".
        log: the file of its output.
    """

    job: Job
    where: str
    log: str


R = TypeVar("R", bound=RunningJob)


class ParallelRunner(ABC, Generic[R]):
    """Runs jobs in other processes; subclasses start these and watch them."""

    def __init__(self) -> None:
        self.running: list[R] = []

    @abstractmethod
    def open(self) -> str:
        """Called first; returns a line that describes the capacity.

        Raises:
            InputError: no job can run.
        """

    @abstractmethod
    def has_room(self) -> bool:
        """Whether one more job can start."""

    @abstractmethod
    def start(self, job: Job) -> R:
        """Start a job.

        Raises:
            InputError: it cannot start.
        """

    @abstractmethod
    def ended(self, seconds: float) -> list[R]:
        """The running jobs that have ended; waits up to `seconds` for one."""

    @abstractmethod
    def crash_reason(self, running: R) -> str | None:
        """Why a job ended without recording its end; None if it recorded it."""

    @abstractmethod
    def stop(self, signal_number: int) -> str:
        """Handle a request to stop; returns a line about the running jobs. Those that are to be
        waited for stay in `running`."""

    def reattach(self, job: Job) -> R | None:
        """The job if an earlier launcher has started it and it still runs."""
        return None

    def release(self, running: R) -> None:
        """Free the resources of a job that has ended."""

    def close(self) -> None:
        """End processes that cannot outlive the launcher."""

    def run(self, queue: Queue) -> None:
        """See `job_queue.Runner`."""
        queue_open, stopping = True, False
        with GracefulStop() as stop, LiveTable() as table:
            table.print_line(self.open())
            try:
                while self.running or (queue_open and not stop.received):
                    while queue_open and not stop.received and self.has_room():
                        queue_open = self._start_next(queue, table)
                    if stop.received and not stopping:
                        stopping = True
                        table.print_line(self.stop(stop.received))
                    for running in self.ended(POLL_SECONDS) if self.running else []:
                        self.running.remove(running)
                        self.release(running)
                        table.print_line(outcome(running, self.crash_reason(running)))
                        queue.ended(running.job)
                    table.draw()
            finally:
                self.close()
        if stop.received:
            raise Preempted(stop.received)

    def _start_next(self, queue: Queue, table: LiveTable) -> bool:
        """Start the next job, or print why it does not start; False if the queue is empty."""
        if (job := queue.next()) is None:
            return False
        table.add(job)
        if not self._started(job, table):
            queue.ended(job)
        return True

    def _started(self, job: Job, table: LiveTable) -> bool:
        if job.plan is None:
            return False  # its error was printed before
        if job.finished:
            table.print_line(finished_message(job))
            return False
        if (running := self.reattach(job)) is not None:
            self.running.append(running)
            table.print_line(f"there    {job.text} {running.where}")
            return True
        if job.state == "running":
            table.print_line(locked_message(job.folder))
            return False
        try:
            running = self.start(job)
        except InputError as error:
            job.error = str(error)
            record_failure(job)
            table.print_line(f"failed   {job.text}: {job.error}")
            return False
        self.running.append(running)
        table.print_line(f"start    {job.text} {running.where}")
        return True


def outcome(running: RunningJob, crash_reason: str | None) -> str:
    """The line about a job that has ended; a crash is recorded in its folder."""
    job = running.job
    if crash_reason is not None:
        job.error = crash_reason
        record_failure(job)
    elif job.state == "failed" and job.folder is not None:
        job.error = run_dir.read_status(job.folder).get("error", "failed")
    if job.error is not None:
        return f"failed   {job.text}: {job.error.splitlines()[0]} (its log: {running.log})"
    return f"{job.state:8} {job.text}"
