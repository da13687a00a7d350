"""One job of a sweep in its own process, which writes all output to the job's log."""

import os
import signal
import sys

from ddpm.runner.distributed.signals import FORWARDED
from ddpm.runner.execution.execute import Preempted
from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.run_job import run_job
from ddpm.runner.terminal import streams

TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)  # sent to all processes of a terminal


def work(job: Job, log: str) -> None:
    """Run the job and end the process: 0 done, 1 failed, 128 + n stopped by signal n."""
    _leave_terminal()
    os.environ[FORWARDED] = "1"  # also for the processes of hardware=ddp
    streams.protect()
    _redirect_output(log)
    try:
        run_job(job)
    except Preempted as stop:
        sys.exit(128 + stop.signal)
    sys.exit(0 if job.error is None else 1)


def _leave_terminal() -> None:
    """Ignore Ctrl-C and the end of the terminal: the launcher handles them and asks each job once.
    Pending signals are dropped; later ones count, unless SIGHUP was ignored from the start (nohup).
    """
    os.setsid()
    saved = {number: signal.signal(number, signal.SIG_IGN) for number in TERMINAL_SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINAL_SIGNALS)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, saved[signal.SIGHUP])


def _redirect_output(log: str) -> None:
    """Redirect standard output and standard error to the log; drop them if it cannot be opened."""
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        streams.lose("stdout", error)
        file = os.open(os.devnull, os.O_WRONLY)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(file, number)
    os.close(file)
