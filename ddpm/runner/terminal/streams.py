"""Standard output and standard error that cannot fail: what cannot be written is dropped.

The console is a tracker like the others. A full disk under a log file, a reader of a pipe that has
ended, a terminal that was closed or a letter that the encoding lacks must not end a run.
"""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

# Of the device or pipe, of the encoding, of a stream that is closed. To write something that is no
# text stays an error: libraries find out by it what a stream takes.
_FAILURES = (OSError, ValueError)


class SafeStream:
    """A stream around another one that drops what the other cannot write, and remembers why.

    Characters that the encoding lacks are written as escapes, as in `\\xe9`. Everything else that a
    stream has (`encoding`, `fileno`, ...) is that of the other one.

    Args:
        stream: the other one; None where the process was started without, as by `>&-`.
        errors: the list that takes the first error; a new one, unless it is shared.
    """

    def __init__(self, stream: Any, errors: list[Exception] | None = None) -> None:
        self._stream = _closed() if stream is None else stream
        self.lost = [] if errors is None else errors

    def write(self, data: Any) -> int:
        """Write text, or bytes to the buffer of a text stream; the length of all of it."""
        try:
            self._stream.write(data)
        except UnicodeError:
            self._try(self._write_escaped, data)
        except _FAILURES as error:
            self.drop(error)
        return len(data)

    def writelines(self, lines: Iterable[Any]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not getattr(self._stream, "closed", False):  # else all of it is lost already
            self._try(self._stream.flush)

    def close(self) -> None:
        """Flush only: others have lines to write, too."""
        self.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(*_FAILURES):
            return self._stream.isatty()
        return False

    def drop(self, error: Exception) -> None:
        """Remember why something was not written."""
        if not self.lost:
            self.lost.append(error)

    @property
    def buffer(self) -> "SafeStream":
        return SafeStream(self._stream.buffer, self.lost)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except _FAILURES as error:
            self.drop(error)

    def _write_escaped(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


io.TextIOBase.register(SafeStream)


def protect() -> None:
    """Make `sys.stdout` and `sys.stderr` safe, in this process; a second call changes nothing.

    Each process that works on a run calls it first: one that is spawned has streams of its own.
    """
    _open_missing_descriptors()
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 - for as long as the process lives
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), SafeStream):
            setattr(sys, name, SafeStream(getattr(sys, name)))
    logging.raiseExceptions = False  # a log file that cannot be written: no traceback for each line


def lose(name: str, error: Exception) -> None:
    """Remember that what goes to `stdout` or `stderr` is lost."""
    if isinstance(stream := getattr(sys, name), SafeStream):
        stream.drop(error)


def loss_of(name: str) -> Exception | None:
    """The first error of `stdout` or `stderr`; None where nothing was lost."""
    return next(iter(getattr(getattr(sys, name), "lost", [])), None)


def losses() -> str | None:
    """What was lost and why, as in `"stdout: Broken pipe"`; None where nothing was."""
    errors = {name: loss_of(name) for name in ("stdout", "stderr")}
    return "; ".join(f"{name}: {reason(e)}" for name, e in errors.items() if e is not None) or None


def reason(error: Exception) -> str:
    """An error in a few words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.rstrip(".")


@contextlib.contextmanager
def forgetting() -> Iterator[None]:
    """Forget all losses at the end: the next run of this process has its own."""
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, SafeStream):
                stream.lost.clear()


def _open_missing_descriptors() -> None:
    """Let descriptors 0 to 2 lead to the null device where nothing else is behind them.

    Otherwise the next file that is opened, a checkpoint perhaps, would get one of these numbers,
    and libraries would write their warnings into it.
    """
    for number in range(3):
        with contextlib.suppress(OSError):  # there is no null device in some containers
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
                os.set_inheritable(number, True)


def _closed() -> TextIO:
    """A stream that refuses everything with the usual error."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stream.close()
    return stream
