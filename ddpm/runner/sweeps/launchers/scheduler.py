"""Jobs side by side: as many at once as there is room for, wherever they run."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from ddpm.errors import InputError
from ddpm.runner.distributed.signals import GracefulStop
from ddpm.runner.execution.execute import Preempted
from ddpm.runner.runs import run_dir
from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.folder import elsewhere
from ddpm.runner.sweeps.launchers.job_queue import Queue
from ddpm.runner.sweeps.launchers.live_table import Overview
from ddpm.runner.sweeps.run_job import keep_error

LOOK_SECONDS = 1.0  # between two looks at the jobs


@dataclass(eq=False)
class Running:
    """A job that has been started.

    Args:
        where: for people: "on GPU 0".
        log: the file that holds what it says.
    """

    job: Job
    where: str
    log: str


One = TypeVar("One", bound=Running)


class Runner(ABC, Generic[One]):
    """What starts jobs in processes that are not this one, and knows how they stand."""

    def __init__(self) -> None:
        self.running: list[One] = []

    @abstractmethod
    def describe(self) -> str:
        """A line about what there is room for."""

    @abstractmethod
    def room(self) -> bool:
        """Whether one more can be started."""

    @abstractmethod
    def start(self, job: Job) -> One:
        """Start a job."""

    @abstractmethod
    def ended(self, seconds: float) -> list[One]:
        """Those of the running that have ended; waits so long for one."""

    @abstractmethod
    def crash(self, one: One) -> str | None:
        """How a job ended that did not come to say so itself; None: it did."""

    def adopt(self, job: Job) -> One | None:
        """A job that is running already, where this runner can know."""
        return None

    def reap(self, one: One) -> None:
        """A job has ended: its room is free."""

    @abstractmethod
    def stop(self, number: int) -> str:
        """We were asked to stop by this signal: what becomes of the jobs that run. Whose end is to
        be waited for stays in `running`."""

    def end(self) -> None:
        """Leave nothing behind that only this process could look after."""


def run(queue: Queue, runner: Runner) -> None:
    """Run all jobs that are not over, as there is room.

    Raises:
        Preempted: we were asked to stop.
    """
    more, told = True, False
    with GracefulStop() as stop, Overview() as overview:
        overview.say(runner.describe())
        try:
            while runner.running or (more and not stop.received):
                while more and not stop.received and runner.room():
                    more = _begin(queue, runner, overview)
                if stop.received and not told:
                    told = True
                    overview.say(runner.stop(stop.received))
                for one in runner.ended(LOOK_SECONDS) if runner.running else []:
                    runner.running.remove(one)
                    runner.reap(one)
                    overview.say(_how(one, runner.crash(one)))
                    queue.ended(one.job)
                overview.draw()
        finally:
            runner.end()
    if stop.received:
        raise Preempted(stop.received)


def _begin(queue: Queue, runner: Runner, overview: Overview) -> bool:
    """Start the next job, or say why it does not begin; whether there was one."""
    if (job := queue.next()) is None:
        return False
    overview.add(job)
    state = job.state
    if job.plan is not None and not job.over and (one := runner.adopt(job)) is not None:
        runner.running.append(one)
        overview.say(f"there    {job.text} {one.where}")
        return True
    if job.plan is None:
        pass  # as was told
    elif job.over:
        overview.say(f"{state:8} {job.folder} was {state} before: {job.text}")
    elif state == "running":
        overview.say(elsewhere(job.folder))
    elif _started(job, runner, overview):
        return True
    queue.ended(job)
    return True


def _started(job: Job, runner: Runner, overview: Overview) -> bool:
    """Start a job; one that cannot be has failed, and stops no other."""
    try:
        one = runner.start(job)
    except InputError as error:
        job.error = str(error)
        keep_error(job)
        overview.say(f"failed   {job.text}: {job.error}")
        return False
    runner.running.append(one)
    overview.say(f"start    {job.text} {one.where}")
    return True


def _how(one: Running, crash: str | None) -> str:
    """What to say of a job that has ended; a crash is noted in its folder."""
    job = one.job
    if crash is not None:
        job.error = crash
        keep_error(job)
    elif job.state == "failed" and job.folder is not None:
        job.error = run_dir.read_status(job.folder).get("error", "failed")
    if job.error is not None:
        return f"failed   {job.text}: {job.error.splitlines()[0]} (its log: {one.log})"
    return f"{job.state:8} {job.text}"
