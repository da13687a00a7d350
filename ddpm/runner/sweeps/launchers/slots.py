"""Jobs in processes of this machine: one for each GPU, or for each so many CPU cores.

They are processes of `multiprocessing` that stop by themselves when this one dies
(`distributed/signals.py`), and that may start processes of their own, as hardware=ddp does. Each
job has its own process, so a crash ends that job alone.
"""

import contextlib
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.launchers.devices import Place, environment
from ddpm.runner.sweeps.launchers.scheduler import Runner, Running
from ddpm.runner.sweeps.launchers.worker import OF_TERMINAL, work


@dataclass(eq=False)
class InSlot(Running):
    """A job in its process."""

    place: Place
    process: BaseProcess


class Slots(Runner[InSlot]):
    """Starts a process for each job.

    Args:
        places: where jobs can run.
        sweep: its folder, for the logs of jobs that have no folder of their own.
    """

    def __init__(self, places: Sequence[Place], sweep: Path) -> None:
        super().__init__()
        self.places, self.free, self.sweep = places, deque(places), sweep
        self.stopping = False

    def describe(self) -> str:
        return f"slots    {len(self.places)}: {', '.join(place.name for place in self.places)}"

    def room(self) -> bool:
        return len(self.free) > 0

    def start(self, job: Job) -> InSlot:
        """Start a process that sees the devices of its place alone."""
        place = self.free.popleft()
        log = (job.folder if job.folder is not None else self.sweep / str(job.number)) / "job.log"
        with contextlib.suppress(OSError):  # without its folder the log is lost, not the job
            log.parent.mkdir(parents=True, exist_ok=True)
        process = get_context("spawn").Process(target=work, args=(job, str(log)))
        with environment(place.variables), _interrupts_held():
            process.start()
        return InSlot(job, f"on {place.name}", str(log), place, process)

    def ended(self, seconds: float) -> list[InSlot]:
        connection.wait([one.process.sentinel for one in self.running], timeout=seconds)
        return [one for one in self.running if not one.process.is_alive()]

    def reap(self, one: InSlot) -> None:
        one.process.join()
        self.free.append(one.place)
        one.job.succeeded = one.process.exitcode == 0

    def crash(self, one: InSlot) -> str | None:
        """What a signal or an exit of its own kind did; 0, 1 and a stop are told by the run. While
        it starts there is nothing to save, and our own signal just ends it."""
        code = one.process.exitcode
        if code in (0, 1) or one.job.state == "preempted":
            return None
        if self.stopping and code == -signal.SIGTERM:
            return None
        return f"its process was ended by signal {-code}" if code < 0 else f"exit status {code}"

    def stop(self, number: int) -> str:
        """Each job finishes its step and saves. Whatever reached us, the jobs get SIGTERM: SIGINT
        means nothing to a process that is only starting."""
        self.stopping = True
        for one in self.running:
            if one.process.is_alive():
                one.process.terminate()
        return f"stopping {len(self.running)} jobs: each finishes its step and saves"

    def end(self) -> None:
        """Whatever happened, no process is left."""
        for one in self.running:
            one.process.kill()
            one.process.join()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """While open, the terminal's signals wait; a process that is started meanwhile holds them until
    it has left the terminal (`ddpm.runner.sweeps.launchers.worker`)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, OF_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_TERMINAL)
