"""Standard output and standard error that never raise: text that cannot be written is dropped.

The console is a tracker like the others. A full disk under a log file, a closed pipe or terminal,
or a character that the encoding lacks must not end a run.
"""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

# Errors of the device, the pipe, the encoding, or a closed stream. A TypeError for data that is not
# text is raised: libraries use it to detect what a stream accepts.
_FAILURES = (OSError, ValueError)


class SafeStream:
    """A wrapper of a stream that drops data that cannot be written and keeps the first error.

    Characters that the encoding lacks are written as escapes, as in `\\xe9`. Other attributes of a
    stream (`encoding`, `fileno`, ...) are those of the wrapped one.

    Args:
        stream: the wrapped stream; None if the process was started without it, as by `>&-`.
        errors: list for the first error, if shared with another wrapper.
    """

    def __init__(self, stream: Any, errors: list[Exception] | None = None) -> None:
        self._stream = _closed() if stream is None else stream
        self.lost = [] if errors is None else errors

    def write(self, data: Any) -> int:
        """Write text, or bytes to the buffer of a text stream; return the length of the data."""
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
        if not getattr(self._stream, "closed", False):  # otherwise the data is lost already
            self._try(self._stream.flush)

    def close(self) -> None:
        """Flush only: the stream is shared."""
        self.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(*_FAILURES):
            return self._stream.isatty()
        return False

    def drop(self, error: Exception) -> None:
        """Keep the first error."""
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
    """Wrap `sys.stdout` and `sys.stderr` of this process; a second call does nothing.

    Each process of a run calls it first: spawned processes have their own streams.
    """
    _open_missing_descriptors()
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 - for as long as the process lives
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), SafeStream):
            setattr(sys, name, SafeStream(getattr(sys, name)))
    logging.raiseExceptions = False  # no traceback for each line that a log file cannot take


def lose(name: str, error: Exception) -> None:
    """Record that output to `stdout` or `stderr` is lost."""
    if isinstance(stream := getattr(sys, name), SafeStream):
        stream.drop(error)


def loss_of(name: str) -> Exception | None:
    """The first error of `stdout` or `stderr`, or None."""
    return next(iter(getattr(getattr(sys, name), "lost", [])), None)


def losses() -> str | None:
    """The streams that lost output, and why, as in `"stdout: Broken pipe"`, or None."""
    errors = {name: loss_of(name) for name in ("stdout", "stderr")}
    return "; ".join(f"{name}: {reason(e)}" for name, e in errors.items() if e is not None) or None


def reason(error: Exception) -> str:
    """An error in a few words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.rstrip(".")


@contextlib.contextmanager
def forgetting() -> Iterator[None]:
    """Clear all recorded errors at the end, for the next run of this process."""
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, SafeStream):
                stream.lost.clear()


def _open_missing_descriptors() -> None:
    """Open the null device as those of the descriptors 0 to 2 that are closed.

    Otherwise the next opened file, perhaps a checkpoint, would get one of these numbers, and
    libraries would write their warnings into it.
    """
    for number in range(3):
        with contextlib.suppress(OSError):  # some containers have no null device
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
                os.set_inheritable(number, True)


def _closed() -> TextIO:
    """A closed stream, which raises ValueError on every write."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stream.close()
    return stream
