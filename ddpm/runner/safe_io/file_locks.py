"""File locks between processes that work on all file systems.

Three kinds of lock are tried in this order, until the file system supports one:

- `flock`: released by the kernel when the process ends, however it ends.
- `record`: an open file description lock of `fcntl`. The kernel releases it, too, and closing
  another descriptor of the same file does not.
- `folder`: a folder `<file>.held` with a file in it that describes the process, which removes it.
  After a kill it stays; the next process removes it if it can tell that the holder has ended, on
  the same machine or on one that was restarted since. Otherwise the holder counts as running, and
  the message names the file to remove.

Machines may mount a file system with different options, and the kernel can run out of locks
(ENOLCK). So the holder of an exclusive lock describes itself and the kind of its lock in the locked
file, and holders of another kind are respected.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ddpm.runner.safe_io import kernel_locks, lock_folder
from ddpm.runner.safe_io.kernel_locks import EXCLUSIVE, FOLDER, NONE, SHARED, TAKEN
from ddpm.runner.safe_io.lock_holder import UNKNOWN, Taken, description, name_of, read, respect

PROBE_SECONDS = (0.05, 0.1)  # another process may hold the lock for a moment to test it
WAIT_SECONDS = 0.2  # between attempts to take a lock that the kernel cannot wait for
NOTICE_SECONDS = 10  # of waiting before a warning names the holder

logger = logging.getLogger(__name__)


class Lock:
    """A lock that this process holds until it calls `release` or ends.

    Args:
        path: the file to lock; created if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pid = os.getpid()
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.is_open = True
        self.described = False  # whether the file describes this process as holder
        self.entry: Path | None = None  # in the folder of holders
        _open.append(self)

    def describe(self, kind: str) -> None:
        """Write the description of this process to the file. On a full disk the lock has none."""
        self.described = True
        with contextlib.suppress(OSError):
            os.ftruncate(self.file, 0)
            os.pwrite(self.file, description(kind), 0)

    def release(self) -> None:
        """Release the lock; does nothing the second time, or in a forked process."""
        if not self.is_open or self.pid != os.getpid():
            return
        _open.remove(self)
        if self.described:
            with contextlib.suppress(OSError):
                os.ftruncate(self.file, 0)
        if self.entry is not None:
            lock_folder.leave(self.entry)
        self._close()

    def abandon(self) -> None:
        """Close the file in a process forked from the holder, which keeps the lock."""
        if self.is_open:
            self._close()

    def _close(self) -> None:
        self.is_open = False
        os.close(self.file)


_open: list[Lock] = []  # the locks of this process


def _abandon_all() -> None:
    """Close inherited locks in a forked process, such as a data loader's worker: otherwise a killed
    parent's locks would stay held."""
    while _open:
        _open.pop().abandon()


os.register_at_fork(after_in_child=_abandon_all)


@contextlib.contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file while open; arguments and errors as of `take`."""
    lock = take(path, wait=wait)
    try:
        yield
    finally:
        lock.release()


def take(path: Path, *, wait: bool = False, probe: bool = True) -> Lock:
    """Lock a file, created if missing, exclusively for this process.

    Args:
        wait: wait for the process that holds it.
        probe: retry shortly after, since another process may only be testing the lock.

    Raises:
        Taken: another process holds it, and `wait` is false.
        OSError: the file cannot be opened, or the disk fails.
    """
    pauses, start, warned = list(PROBE_SECONDS if probe else ()), time.monotonic(), False
    while True:
        try:
            return _take(path, wait)
        except Taken as taken:
            if not wait and (taken.remedy or not pauses):
                raise
            if not warned and time.monotonic() - start > NOTICE_SECONDS:
                warned = True
                logger.warning("%s: waiting for %s. %s", path, taken.holder, taken.remedy)
        time.sleep(WAIT_SECONDS if wait else pauses.pop(0))


def _take(path: Path, wait: bool) -> Lock:
    lock = Lock(path)
    try:
        kind = _lock_in_kernel(lock, EXCLUSIVE, wait)
        if kind is None:
            lock.entry = lock_folder.enter_alone(path)
            kind = FOLDER if lock.entry else NONE
        other = read(lock.file)
        if other is not None and (other.kind != kind or kind == NONE):
            respect(other, path)
        if kind != FOLDER:
            lock.describe(kind)  # before the check: of two at once, at least one sees the other
            lock_folder.check_holders(path)
    except BaseException:
        lock.release()
        raise
    return lock


def _lock_in_kernel(lock: Lock, mode: int, wait: bool) -> str | None:
    """The kind of the kernel's lock that is now held on the file; None if it offers none.

    Raises:
        Taken: another process holds it.
    """
    try:
        return kernel_locks.lock(lock.path, lock.file, mode, wait)
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        raise Taken(name_of(lock.file)) from None


def join(path: Path) -> tuple[Lock, bool]:
    """Share the lock of a file with other processes that join. Call from one process at a time.

    Returns:
        the lock, and whether this process is the first holder.
    """
    lock = Lock(path)
    try:
        others = _join_in_kernel(lock)
        first = others is not True and not lock_folder.holders_of(path)
        if others is None:
            lock.entry = lock_folder.enter(path)
    except BaseException:
        lock.release()
        raise
    return lock, first


def _join_in_kernel(lock: Lock) -> bool | None:
    """Share the lock of an open file. Returns whether others do; None if locks are unsupported."""
    others = False
    try:
        if _lock_in_kernel(lock, EXCLUSIVE, wait=False) is None:
            return None
    except Taken:
        others = True
    _lock_in_kernel(lock, SHARED, wait=True)
    return others


def is_taken(path: Path) -> bool:
    """Whether a process holds the lock of a file; creates no file and keeps no lock."""
    return find(path) is not None


def find(path: Path) -> Taken | None:
    """The exception that `take` would raise now, or None if the lock is free; does not take it."""
    try:
        lock_folder.check_holders(path, remove=False)
        file = _open_to_test(path)
    except Taken as taken:
        return taken
    except FileNotFoundError:
        return None
    except OSError:
        return Taken(UNKNOWN)
    try:
        kind = kernel_locks.lock(path, file, SHARED, wait=False, silent=True)
        other = read(file)
        if other is not None and other.kind != kind:
            respect(other, path)
    except Taken as taken:
        return taken
    except OSError:
        return Taken(name_of(file))
    finally:
        os.close(file)
    return None


def _open_to_test(path: Path) -> int:
    """Open a file, if possible for writing: NFS locks no others (EBADF)."""
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
