"""Protected streams: dropped output, escaped characters, and errors that are still raised."""

import errno
import importlib.util
import io
import logging
import os
import sys
import traceback
import warnings

import pytest
from tqdm import tqdm

from ddpm.runner.terminal import streams
from ddpm.runner.terminal.progress import Progress

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
ERRORS = {
    "full": FULL,
    "too large": OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
    "quota": OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    "hung up": OSError(errno.EIO, os.strerror(errno.EIO)),
    "stale": OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    "no descriptor": OSError(errno.EBADF, os.strerror(errno.EBADF)),
    "no reader": BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)),
    "not now": BlockingIOError(errno.EAGAIN, "write could not complete without blocking", 0),
    "closed": ValueError("I/O operation on closed file."),
    "no text": UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
}


class Failing(io.StringIO):
    """A terminal whose writes and flushes raise after `good` writes."""

    def __init__(self, error, good=0):
        super().__init__()
        self.error, self.good, self.tries = error, good, 0

    def isatty(self):
        return True

    def write(self, text):
        self.tries += 1
        if self.tries > self.good:
            raise self.error
        return super().write(text)

    def flush(self):
        if self.tries > self.good:
            raise self.error


@pytest.fixture
def replaced(monkeypatch):
    """Replace standard output and standard error, and protect them."""

    def replace(out, err):
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(logging, "raiseExceptions", True)
        streams.protect()

    return replace


# ways to print


def say_print():
    print("a line")
    print("another", flush=True)


def say_print_err():
    print("a line", file=sys.stderr)


def say_write():
    sys.stdout.write("text")
    sys.stderr.writelines(["one\n", "two\n"])
    sys.stdout.flush()


def say_log():
    handler = logging.StreamHandler()
    logger = logging.Logger("here")
    logger.addHandler(handler)
    logger.warning("of something")
    handler.close()


def say_warning():
    fresh = importlib.util.module_from_spec(warnings.__spec__)  # pytest has changed the usual one
    warnings.__spec__.loader.exec_module(fresh)
    fresh.showwarning("of something", UserWarning, __file__, 1)


def say_traceback():
    try:
        raise RuntimeError("a mistake")
    except RuntimeError as error:
        traceback.print_exception(error)


def say_bar():
    with Progress(3) as progress:
        for step in range(3):
            progress.advance()
            progress.show(step + 1, "loss 1")
            progress.say("a line")


def say_tqdm():
    for n in tqdm(range(3), mininterval=0):
        tqdm.write(str(n))


def say_at_exit():
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout.close()


SAYING = [
    *(say_print, say_print_err, say_write, say_log, say_warning, say_traceback),
    *(say_bar, say_tqdm, say_at_exit),
]


@pytest.mark.parametrize("say", SAYING, ids=lambda say: say.__name__[4:])
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("good", [0, 1])
def test_stream_errors_do_not_reach_the_caller(say, error, good, replaced):
    out, err = Failing(error, good), Failing(error, good)
    replaced(out, err)
    for _ in range(3):
        say()
    assert (streams.losses() is not None) == (out.tries > good or err.tries > good)
    assert out.tries + err.tries > 1 or say is say_at_exit


@pytest.mark.parametrize("say", SAYING, ids=lambda say: say.__name__[4:])
def test_writing_to_missing_or_closed_streams_raises_nothing(say, replaced):
    closed = io.StringIO()
    closed.close()
    for out, err in ((None, None), (closed, closed), (None, io.StringIO()), (io.StringIO(), None)):
        replaced(out, err)
        say()


def test_output_resumes_when_there_is_space_again(replaced):
    class Filling(Failing):
        def write(self, text):
            self.tries += 1
            if 2 <= self.tries <= 3:
                raise FULL
            return io.StringIO.write(self, text)

    out = Filling(FULL, 100)
    replaced(out, io.StringIO())
    for text in "abcd":
        sys.stdout.write(text)
    assert out.getvalue() == "ad"
    assert streams.losses() == "stdout: No space left on device"


def test_first_error_of_each_stream_is_kept_until_reset(replaced):
    replaced(Failing(FULL), Failing(ERRORS["no reader"]))
    assert streams.losses() is None
    print("a line")
    assert streams.losses() == "stdout: No space left on device"
    sys.stdout._stream.error = ERRORS["hung up"]
    print("another", file=sys.stderr)
    print("another")
    assert streams.losses() == "stdout: No space left on device; stderr: Broken pipe"
    with streams.forgetting():
        print("another")
    assert streams.losses() is None
    assert streams.loss_of("stdout") is None
    print("another")
    assert streams.loss_of("stdout") is ERRORS["hung up"]


# characters that an encoding lacks


@pytest.mark.parametrize(
    ("encoding", "text", "written"),
    [
        ("ascii", "runs/ñandú\n", b"runs/\\xf1and\\xfa\n"),
        ("ascii", "日本 \U0001f600", b"\\u65e5\\u672c \\U0001f600"),
        ("latin-1", "ñandú — 日", b"\xf1and\xfa \\u2014 \\u65e5"),
        ("utf-8", "a\udcff/ñ", b"a\\udcff/\xc3\xb1"),
        ("ascii", "plain", b"plain"),
    ],
)
def test_characters_that_the_encoding_lacks_are_written_as_escapes(
    encoding, text, written, replaced
):
    raw = io.BytesIO()
    replaced(io.TextIOWrapper(raw, encoding=encoding), io.StringIO())
    print(text, end="", flush=True)
    assert raw.getvalue() == written
    assert streams.losses() is None, "nothing is lost"


def test_progress_bar_escapes_characters_in_an_ascii_terminal(replaced):
    raw = io.BytesIO()
    err = io.TextIOWrapper(raw, encoding="ascii")
    err.isatty = lambda: True
    replaced(io.StringIO(), err)
    with Progress(2) as progress:
        progress.advance(2)
        progress.show(2, "läuft")
        progress.bar.refresh()
    err.flush()
    assert b"l\\xe4uft" in raw.getvalue()


# unchanged behaviour


def test_working_stream_behaves_unchanged(replaced):
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="utf-8", line_buffering=True)
    replaced(out, io.StringIO())
    streams.protect()
    assert sys.stdout._stream is out, "wrapped once"
    assert isinstance(sys.stdout, io.TextIOBase)
    assert sys.stdout.encoding == "utf-8"
    assert sys.stdout.line_buffering
    assert not sys.stdout.isatty()
    assert print("a", "b", file=sys.stdout) is None
    assert sys.stdout.write("text\n") == 5
    sys.stdout.buffer.write(b"bytes\n")
    sys.stdout.close()
    sys.stdout.write("more\n")
    sys.stdout.flush()
    assert raw.getvalue() == b"a b\ntext\nbytes\nmore\n"
    assert streams.losses() is None


def test_bytes_that_cannot_be_written_are_dropped(replaced):
    out = io.TextIOWrapper(io.BufferedWriter(io.FileIO("/dev/full", "w")), encoding="utf-8")
    replaced(out, io.StringIO())
    sys.stdout.buffer.write(b"x" * 100_000)
    sys.stdout.buffer.flush()
    assert streams.losses() == "stdout: No space left on device"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), TypeError("no text")])
def test_errors_unrelated_to_the_stream_are_raised(error, replaced):
    replaced(Failing(error), io.StringIO())
    with pytest.raises(type(error)):
        print("a line")


def test_writing_bytes_to_a_text_stream_raises_type_error(replaced):
    replaced(io.StringIO(), io.StringIO())
    with pytest.raises(TypeError):
        sys.stdout.write(b"bytes")


def test_logging_to_a_full_disk_prints_no_tracebacks(replaced):
    err = io.StringIO()
    replaced(io.StringIO(), err)
    handler = logging.FileHandler("/dev/full")
    logger = logging.Logger("here")
    logger.addHandler(handler)
    logger.warning("of something")
    assert err.getvalue() == ""
    with pytest.raises(OSError, match="No space left"):
        handler.close()


# descriptors


def in_fork(action):
    """The exit status of a forked process that calls `action`."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = action() or 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("missing", [(0,), (1,), (2,), (0, 2), (0, 1, 2)], ids=str)
def test_new_files_do_not_get_descriptors_0_to_2(missing):
    """A checkpoint that is descriptor 2 would take the warnings of libraries."""

    def act():
        for number in missing:
            os.close(number)
        sys.stdin = None
        streams.protect()
        file = os.open("/dev/zero", os.O_RDONLY)
        links = [os.readlink(f"/proc/self/fd/{number}") for number in missing]
        good = file > 2 and links == ["/dev/null"] * len(missing) and sys.stdin.read() == ""
        return 0 if good and all(map(os.get_inheritable, missing)) else 1

    assert in_fork(act) == 0


def test_open_standard_descriptors_are_kept():
    def act():
        before = [os.fstat(number) for number in range(3)]
        streams.protect()
        return 0 if [os.fstat(number) for number in range(3)] == before else 1

    assert in_fork(act) == 0


def test_full_non_blocking_pipe_loses_output_and_recovers(replaced):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    replaced(os.fdopen(writer, "w"), io.StringIO())
    for _ in range(40):
        print("x" * 10_000, flush=True)
    assert streams.losses().startswith("stdout: ")
    assert len(os.read(reader, 1_000_000)) > 30_000
    print("again", flush=True)
    assert os.read(reader, 1_000_000).endswith(b"again\n")
    os.close(reader)
    print("x" * 10_000, flush=True)
