"""Jobs in processes of this machine: one per GPU, or per share of the CPU cores.

A crash ends only its own job. The processes come from `multiprocessing`, stop by themselves when
this one dies (`distributed/signals.py`), and may start others, as hardware=ddp does.
"""

import contextlib
import os
import signal
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ddpm.runner.distributed import environment
from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.launchers.devices import Slot, find_slots
from ddpm.runner.sweeps.launchers.scheduler import ParallelRunner, RunningJob
from ddpm.runner.sweeps.launchers.worker import TERMINAL_SIGNALS, work


@dataclass(eq=False)
class SlotProcess(RunningJob):
    """A job in its process."""

    slot: Slot
    process: BaseProcess


class Slots(ParallelRunner[SlotProcess]):
    """Starts a process for each job.

    Args:
        sweep: its folder, for the logs of jobs without a folder.
        settings: of `find_slots`.
    """

    def __init__(self, sweep: Path, **settings: Any) -> None:
        super().__init__()
        self.sweep, self.settings = sweep, settings
        self.free: deque[Slot] = deque()
        self.stopping = False

    def open(self) -> str:
        self.free.extend(find_slots(**self.settings))
        return f"slots    {len(self.free)}: {', '.join(slot.name for slot in self.free)}"

    def has_room(self) -> bool:
        return len(self.free) > 0

    def start(self, job: Job) -> SlotProcess:
        """Start a process that sees only the devices of its slot."""
        slot = self.free.popleft()
        log = (job.folder if job.folder is not None else self.sweep / str(job.number)) / "job.log"
        with contextlib.suppress(OSError):  # without its folder the log is lost, not the job
            log.parent.mkdir(parents=True, exist_ok=True)
        process = get_context("spawn").Process(target=work, args=(job, str(log)))
        with environment.restored(slot.variables), _terminal_signals_blocked():
            os.environ.update(slot.variables)  # inherited by the process
            process.start()
        return SlotProcess(job, f"on {slot.name}", str(log), slot, process)

    def ended(self, seconds: float) -> list[SlotProcess]:
        connection.wait([running.process.sentinel for running in self.running], timeout=seconds)
        return [running for running in self.running if not running.process.is_alive()]

    def release(self, running: SlotProcess) -> None:
        running.process.join()
        self.free.append(running.slot)
        running.job.succeeded = running.process.exitcode == 0

    def crash_reason(self, running: SlotProcess) -> str | None:
        """A signal or an exit status other than 0 and 1, which the run itself explains. Our own
        SIGTERM while a process starts is no crash: it has nothing to save yet."""
        code = running.process.exitcode
        if code is None or code in (0, 1) or running.job.state == "preempted":
            return None
        if self.stopping and code == -signal.SIGTERM:
            return None
        return f"its process was ended by signal {-code}" if code < 0 else f"exit status {code}"

    def stop(self, signal_number: int) -> str:
        """Let each job finish its step and save. They get SIGTERM, whichever signal came: a process
        that is still starting ignores SIGINT."""
        self.stopping = True
        for running in self.running:
            if running.process.is_alive():
                running.process.terminate()
        return f"stopping {len(self.running)} jobs: each finishes its step and saves"

    def close(self) -> None:
        for running in self.running:
            running.process.kill()
            running.process.join()


@contextlib.contextmanager
def _terminal_signals_blocked() -> Iterator[None]:
    """Block the terminal's signals while open; a process started meanwhile keeps them blocked until
    it has left the terminal (`worker.py`)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINAL_SIGNALS)
