"""Signals that ask a run to stop: it finishes its step, saves, and says that it was preempted."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType, TracebackType
from typing import Any, Self

_ASKING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
# One request may come twice: to the whole group of processes, and handed on by the parent.
_ECHO_SECONDS = 0.5
_TORCHRUN_SECONDS = 3.0
_END_OF_SESSION = {signal.SIGTERM, signal.SIGHUP}  # systemd sends both, one right after the other


class StoppedAtOnce(KeyboardInterrupt):
    """A signal that cannot wait came: nothing more is to be done than to leave all in order."""

    def __init__(self, number: int, how: str = "by a second signal") -> None:
        super().__init__(f"stopped at once {how}, {signal.Signals(number).name}")
        self.signal = number


class GracefulStop:
    """While open, the first signal only notes that a stop is wanted; a second one stops at once.

    Handlers that were there before are called, too, but when this is closed: one that hands the job
    back to a cluster's queue ends the process, and until then the run has to be saved. Python's
    own, which would raise KeyboardInterrupt, is not called.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._when = 0.0
        self._before: dict[int, Any] = {}

    @property
    def wanted(self) -> bool:
        """Whether to stop: a signal came, or the process that started this one has died."""
        return self.received is not None or _parent_died()

    def __enter__(self) -> Self:
        self._before = _install(self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _restore(self._before)
        if self.received is not None:
            _hand_over(self.received, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._when = signal.Signals(number), now
        elif not self._is_echo(number, now - self._when):
            raise StoppedAtOnce(number)

    def _is_echo(self, number: int, seconds: float) -> bool:
        """Whether a signal says again what the first one said."""
        if "TORCHELASTIC_RUN_ID" in os.environ:  # Ctrl-C reaches torchrun, too: it sends SIGTERM
            return seconds < _TORCHRUN_SECONDS
        # Ctrl-C at a terminal asks all processes at once, and the parent hands it on as well.
        handed_on = number != signal.SIGINT or multiprocessing.parent_process() is not None
        same = number == self.received or {number, self.received} == _END_OF_SESSION
        return same and handed_on and seconds < _ECHO_SECONDS


def _parent_died() -> bool:
    """Whether this process was started by one of ours that is there no more."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return False
    try:
        return not parent.is_alive()
    except ValueError:  # a process of loky, which does not watch its parent in this way
        return os.getppid() != parent.pid


@contextlib.contextmanager
def to_children() -> Iterator[list[int]]:
    """While open, this process only waits for its children, and hands on what asks to stop: the
    list of that. Earlier handlers are called at the end, as by `GracefulStop`."""
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)

    _start_tracker()
    before = _install(hand_on)
    try:
        yield received
    finally:
        _restore(before)
        if received:
            _hand_over(received[0], before)


def _start_tracker() -> None:
    """Start the process with which `multiprocessing` keeps track of shared memory, deaf to SIGHUP.

    By itself it leaves SIGINT and SIGTERM to its parent, but not the end of a terminal: its own end
    would be told, with a traceback, while the run still saves.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def leave_to_parent() -> None:
    """Let signals that ask to stop mean nothing in a process that only reads ahead for another one.

    A signal to a whole group of processes reaches both. The other process still needs its batches
    to finish its step, and ends this one afterwards. A second SIGTERM counts: the other process
    sends it to one that does not answer.
    """
    for number in map(_number, _ASKING):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set the handler of all signals that ask to stop; the ones that were there."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere Python allows none
        return {}
    numbers = [number for number in map(_number, _ASKING) if not _under_nohup(number)]
    return {number: signal.signal(number, handler) for number in numbers}


def _under_nohup(number: int) -> bool:
    """Whether it is the end of a terminal that this process was told to outlive."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _hand_over(number: int, before: dict[int, Any]) -> None:
    """Call the handler that a signal would have met without us."""
    handler = before.get(number)
    if callable(handler) and handler is not signal.default_int_handler:
        handler(number, None)


def _number(name: str) -> signal.Signals:
    return getattr(signal, name)
