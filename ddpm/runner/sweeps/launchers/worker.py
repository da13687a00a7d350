"""One job of a sweep in a process of its own, which writes all it says to the job's log."""

import os
import signal
import sys

from ddpm.runner.execution.execute import Preempted
from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.run_job import attempt
from ddpm.runner.terminal import streams

OF_TERMINAL = (signal.SIGINT, signal.SIGHUP)  # signals that a terminal sends to all its processes


def work(job: Job, log: str) -> None:
    """Run the job and end the process: 0 done, 1 failed, 128 + n stopped by signal n."""
    _leave_terminal()
    streams.protect()
    _write_to(log)
    try:
        attempt(job)
    except Preempted as stop:
        sys.exit(128 + stop.signal)
    sys.exit(0 if job.error is None else 1)


def _leave_terminal() -> None:
    """Ctrl-C and the end of the terminal are the launcher's affair: it asks each job once. Signals
    that came before are dropped; later ones count, unless SIGHUP is ignored for good (nohup)."""
    os.setsid()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in OF_TERMINAL}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_TERMINAL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, before[signal.SIGHUP])


def _write_to(log: str) -> None:
    """Let standard output and standard error go to the log; nowhere, where it cannot be opened."""
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        streams.lose("stdout", error)
        file = os.open(os.devnull, os.O_WRONLY)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(file, number)
    os.close(file)
