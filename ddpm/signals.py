"""Signals that ask a run to stop: it finishes its step, saves, and says that it was preempted."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

_ASKING = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


class GracefulStop:
    """While open, the first signal only sets `received`; a second one stops at once.

    Handlers that were there before are called too (a cluster's own requeue handler, say), except
    Python's, which would raise KeyboardInterrupt in the middle of a step.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows none
            for name in _ASKING:
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        before = self._before[self.received]
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)


@contextlib.contextmanager
def to_children() -> Iterator[None]:
    """While open, this process only waits for its children, and hands on what asks to stop.

    Not Ctrl-C: a terminal sends that to the children as well.
    """
    before = {}

    def hand_on(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            for child in multiprocessing.active_children():
                os.kill(child.pid, number)

    if threading.current_thread() is threading.main_thread():
        for name in _ASKING:
            number = getattr(signal, name)
            before[number] = signal.signal(number, hand_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
