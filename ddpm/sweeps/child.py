"""One job of a sweep in a process of its own, which writes all it says to the job's log."""

import os
import signal
import sys

from ddpm.perform import Preempted
from ddpm.sweeps.attempt import attempt
from ddpm.sweeps.freeze import Job


def work(job: Job, log: str) -> None:
    """Run the job and end the process: 0 done, 1 failed, 128 + n stopped by signal n."""
    os.setsid()  # Ctrl-C at the terminal is the launcher's affair: it asks each job once
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that came before is dropped,
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)  # later ones count
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    os.close(file)
    try:
        attempt(job)
    except Preempted as stop:
        sys.exit(128 + stop.signal)
    sys.exit(0 if job.error is None else 1)
