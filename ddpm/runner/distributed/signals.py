"""Signals that request a stop: the run finishes its step, saves and ends as preempted."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, Self

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# One request can arrive twice: by the process group, and forwarded by the parent.
_ECHO_SECONDS = 0.5
_LAUNCHER_SECONDS = 3.0
# Set where a launcher forwards a request late, as SIGTERM, to processes that may have received it
# themselves: Slurm sends a signal to all processes of a step.
FORWARDED = "DDPM_SIGNALS_FORWARDED"
_END_OF_SESSION = {signal.SIGTERM, signal.SIGHUP}  # systemd sends both, one right after the other


class StoppedAtOnce(KeyboardInterrupt):
    """A stop that cannot wait for the end of the step."""

    def __init__(self, number: int, how: str = "by a second signal") -> None:
        super().__init__(f"stopped at once {how}, {signal.Signals(number).name}")
        self.signal = number


class GracefulStop:
    """While open, the first signal only records that a stop is requested; a second raises at once.

    Signal handlers installed earlier are chained: they run when this is closed, after the
    checkpoint is written, because a handler that requeues the job on a cluster ends the process.
    Python's own handler, which raises KeyboardInterrupt, is not called.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._when = 0.0
        self._earlier: dict[int, Any] = {}

    @property
    def wanted(self) -> bool:
        """Whether to stop: a signal arrived, or the parent process has died."""
        return self.received is not None or _parent_died()

    def __enter__(self) -> Self:
        self._earlier = _install(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        _restore(self._earlier)
        if self.received is not None:
            _call_earlier(self.received, self._earlier)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._when = signal.Signals(number), now
        elif not self._is_echo(number, now - self._when):
            raise StoppedAtOnce(number)

    def _is_echo(self, number: int, seconds: float) -> bool:
        """Whether a signal repeats the first request."""
        if "TORCHELASTIC_RUN_ID" in os.environ:  # Ctrl-C also reaches torchrun, which sends SIGTERM
            return seconds < _LAUNCHER_SECONDS
        if number == signal.SIGTERM and FORWARDED in os.environ:
            return seconds < _LAUNCHER_SECONDS
        # Ctrl-C at a terminal reaches all processes at once, and the parent forwards it as well.
        forwarded = number != signal.SIGINT or multiprocessing.parent_process() is not None
        same = number == self.received or {number, self.received} == _END_OF_SESSION
        return same and forwarded and seconds < _ECHO_SECONDS


def _parent_died() -> bool:
    """Whether our parent process has died."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return False
    try:
        return not parent.is_alive()
    except ValueError:  # a loky process, whose handle of the parent cannot be polled
        return os.getppid() != parent.pid


@contextlib.contextmanager
def to_children() -> Iterator[list[int]]:
    """While open, forward stop signals to the child processes; yields the list of those received.
    Earlier handlers are called at the end, as by `GracefulStop`."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError):
                assert child.pid is not None  # active children have started
                os.kill(child.pid, number)

    _start_tracker()
    earlier = _install(forward)
    try:
        yield received
    finally:
        _restore(earlier)
        if received:
            _call_earlier(received[0], earlier)


def _start_tracker() -> None:
    """Start the resource tracker of `multiprocessing` with SIGHUP blocked.

    It ignores SIGINT and SIGTERM by itself. A SIGHUP, when the terminal closes, would kill it, and
    `multiprocessing` would print a traceback while the run still saves.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """While open, stop signals wait; so they do in processes started meanwhile, until these call
    `leave_to_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """Ignore stop signals in a data loader's worker process.

    A signal to the process group reaches both. The training process still needs batches to finish
    its step, and ends its workers afterwards. A second SIGTERM ends the worker: the training
    process sends it to one that does not respond.
    """
    for number in _ASKING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKING)  # `held` blocks them in the parent


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set the handler of all stop signals; return the earlier handlers."""
    if threading.current_thread() is not threading.main_thread():  # Python sets no others
        return {}
    numbers = [number for number in _ASKING if not _under_nohup(number)]
    return {number: signal.signal(number, handler) for number in numbers}


def _under_nohup(number: int) -> bool:
    """Whether the signal is SIGHUP and this process was started by nohup."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def _restore(earlier: dict[int, Any]) -> None:
    for number, handler in earlier.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _call_earlier(number: int, earlier: dict[int, Any]) -> None:
    """Call the handler that was installed before ours."""
    handler = earlier.get(number)
    if callable(handler) and handler is not signal.default_int_handler:
        handler(number, None)
