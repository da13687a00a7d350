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
import errno
import fcntl
import functools
import json
import logging
import os
import secrets
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ddpm.errors import shown

FOLDER, NONE = "folder", "none"  # kinds of locks besides those of the kernel
UNKNOWN = "another process"
PROBE_SECONDS = (0.05, 0.1)  # another process may hold the lock for a moment to test it
WAIT_SECONDS = 0.2  # between attempts to take a lock that the kernel cannot wait for
NOTICE_SECONDS = 10  # of waiting before a warning names the holder
MAX_TEXT = 2000  # bytes of the description of a holder
TRIES = 20

# Error codes of system calls that the file system does not support.
UNSUPPORTED = frozenset(
    (
        *(errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL),
        *(errno.EBADF, errno.ENODEV, errno.ENOTTY, errno.EPERM),
    )
)
_TAKEN = (errno.EAGAIN, errno.EACCES)  # EACCES: from fcntl, and from flock on SMB

logger = logging.getLogger(__name__)


class Taken(Exception):
    """Another process holds the lock.

    Args:
        holder: description of that process: "process 4711 on node3".
        remedy: advice for the case that it has ended; empty if it is known to run.
    """

    def __init__(self, holder: str, remedy: str = "") -> None:
        super().__init__(holder)
        self.holder, self.remedy = holder, remedy


@dataclass(frozen=True)
class Holder:
    """Description of a process from which another process can tell whether it has ended.

    Args:
        kind: kind of its lock.
        machine: id of the machine, kept over restarts.
        boot: id of the boot.
        namespace: namespace of process ids; containers have their own.
        started: start time of the process in kernel ticks, since process ids are reused.
    """

    kind: str
    pid: int
    host: str
    machine: str
    boot: str
    namespace: str
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {shown(self.host)}"

    def has_ended(self) -> bool | None:
        """Whether the process has ended; None if that cannot be determined from this process."""
        own = this_process(self.kind)
        if (self.boot, self.namespace) == (own.boot, own.namespace):
            return not _is_running(self.pid, self.started)
        same_machine = self.machine and (self.host, self.machine) == (own.host, own.machine)
        return True if same_machine and self.boot != own.boot else None


def this_process(kind: str) -> Holder:
    """The description of this process."""
    host = socket.gethostname()
    boot = _text("/proc/sys/kernel/random/boot_id") or f"host {host}"
    return Holder(
        kind=kind,
        pid=os.getpid(),
        host=host,
        machine=_text("/etc/machine-id"),
        boot=boot,
        namespace=_pid_namespace(),
        started=_state_of(os.getpid())[1],
    )


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


@functools.cache
def _text(path: str) -> str:
    """The content of a small system file; empty if it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return ""


def _is_running(pid: int, started: str) -> bool:
    """Whether a process with this id and start time runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it belongs to another user
    state, start = _state_of(pid)
    return state not in ("Z", "X") and (not start or not started or start == started)


def _state_of(pid: int) -> tuple[str, str]:
    """State (R, S, Z, ...) and start time of a process; empty if the system hides them."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, ValueError, IndexError):
        return "", ""


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
            os.pwrite(self.file, _described(kind), 0)

    def release(self) -> None:
        """Release the lock; does nothing the second time, or in a forked process."""
        if not self.is_open or self.pid != os.getpid():
            return
        _open.remove(self)
        if self.described:
            with contextlib.suppress(OSError):
                os.ftruncate(self.file, 0)
        if self.entry is not None:
            with contextlib.suppress(OSError):
                self.entry.unlink()
            with contextlib.suppress(OSError):
                self.entry.parent.rmdir()  # fails if others are in it
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
        kind = _lock_in_kernel(lock, fcntl.LOCK_EX, wait) or _enter_alone(lock)
        other = _read(lock.file)
        if other is not None and (other.kind != kind or kind == NONE):
            _respect(other, path)
        if kind != FOLDER:
            lock.describe(kind)  # before the check: of two at once, at least one sees the other
            _check_holders(path)
    except BaseException:
        lock.release()
        raise
    return lock


def join(path: Path) -> tuple[Lock, bool]:
    """Share the lock of a file with other processes that join. Call from one process at a time.

    Returns:
        the lock, and whether this process is the first holder.
    """
    lock = Lock(path)
    try:
        others = _join_in_kernel(lock)
        first = others is not True and not _holders(path)
        if others is None:
            _enter(lock)
    except BaseException:
        lock.release()
        raise
    return lock, first


def _join_in_kernel(lock: Lock) -> bool | None:
    """Share the lock of an open file. Returns whether others do; None if locks are unsupported."""
    others = False
    try:
        if _lock_in_kernel(lock, fcntl.LOCK_EX, wait=False) is None:
            return None
    except Taken:
        others = True
    _lock_in_kernel(lock, fcntl.LOCK_SH, wait=True)
    return others


def is_taken(path: Path) -> bool:
    """Whether a process holds the lock of a file; creates no file and keeps no lock."""
    return find(path) is not None


def find(path: Path) -> Taken | None:
    """The exception that `take` would raise now, or None if the lock is free; does not take it."""
    try:
        _check_holders(path, remove=False)
        file = _open_to_test(path)
    except Taken as taken:
        return taken
    except FileNotFoundError:
        return None
    except OSError:
        return Taken(UNKNOWN)
    try:
        kind = _call_kernel(path, file, fcntl.LOCK_SH, wait=False, silent=True)
        other = _read(file)
        if other is not None and other.kind != kind:
            _respect(other, path)
    except Taken as taken:
        return taken
    except OSError:
        return Taken(_name(file))
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


# Locks of the kernel


def _flock(file: int, mode: int, wait: bool) -> None:
    fcntl.flock(file, mode | (0 if wait else fcntl.LOCK_NB))


def _record(file: int, mode: int, wait: bool) -> None:
    """Lock the whole file with `fcntl` for this open file description (Linux 3.15 and later)."""
    command = getattr(fcntl, "F_OFD_SETLKW" if wait else "F_OFD_SETLK", None)
    if command is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    kind = fcntl.F_WRLCK if mode == fcntl.LOCK_EX else fcntl.F_RDLCK
    fcntl.fcntl(file, command, struct.pack("hhqqi", kind, os.SEEK_SET, 0, 0, 0))


_KERNEL: dict[str, Callable[[int, int, bool], None]] = {"flock": _flock, "record": _record}


def _lock_in_kernel(lock: Lock, mode: int, wait: bool) -> str | None:
    """Lock an open file. Returns the kind of the lock, or None if the file system supports none.

    Raises:
        Taken: another process holds it.
    """
    try:
        return _call_kernel(lock.path, lock.file, mode, wait)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise Taken(_name(lock.file)) from None


def _call_kernel(
    path: Path, file: int, mode: int, wait: bool, *, silent: bool = False
) -> str | None:
    unsupported: OSError | None = None
    for kind, call in _KERNEL.items():
        try:
            call(file, mode, wait)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            unsupported = unsupported or error
        else:
            if unsupported is not None and not silent:
                _warn_once(path, kind, unsupported)
            return kind
    if unsupported is not None and not silent:
        _warn_once(path, FOLDER, unsupported)
    return None


_ADVICE = {
    "record": "Record locks (fcntl) are used instead and protect as well.",
    FOLDER: (
        "Folders named *.held are used instead. If a process is killed on another machine, its "
        "folder stays, and the next start names the file to remove."
    ),
    NONE: "No replacement works: make sure that no two processes work in one folder.",
}
_warned: set[tuple[int, str]] = set()


def _warn_once(path: Path, kind: str, error: OSError) -> None:
    """Warn about a file system without `flock`, once per process and device."""
    device = os.stat(path.parent).st_dev, kind
    if device not in _warned:
        _warned.add(device)
        what = "flock" if kind == "record" else "locks"
        reason = error.strerror or str(error)
        logger.warning("%s: the file system has no %s (%s). %s", path, what, reason, _ADVICE[kind])


# Folders that name the holders


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def _enter_alone(lock: Lock) -> str:
    """Create the folder of holders with this process in it, by one rename that fails if there is a
    holder; return the kind of the lock.

    Raises:
        Taken: another process is in the folder.
    """
    folder = _folder(lock.path)
    for _ in range(TRIES):
        temporary = lock.path.with_name(f".{secrets.token_hex(6)}.tmp")
        temporary.mkdir()
        try:
            entry = _write_entry(temporary)
            os.rename(temporary, folder)  # replaces an empty folder only
            lock.entry = folder / entry.name
            return FOLDER
        except OSError as error:
            failure = error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _check_holders(lock.path)  # removes a folder without holders: the next rename succeeds
    if failure.errno not in UNSUPPORTED | {errno.EXDEV}:
        raise failure
    _warn_once(lock.path, NONE, failure)
    return NONE


def _enter(lock: Lock) -> None:
    """Add this process to the holders."""
    for attempts_left in reversed(range(TRIES)):
        try:
            _folder(lock.path).mkdir(exist_ok=True)
            lock.entry = _write_entry(_folder(lock.path))
            return
        except FileNotFoundError:  # the last other holder removed the empty folder
            if not attempts_left:
                raise


def _write_entry(folder: Path) -> Path:
    entry = folder / f"{os.getpid()}-{secrets.token_hex(6)}"  # a name that never existed before
    entry.write_bytes(_described(FOLDER))
    return entry


def _holders(path: Path, *, remove: bool = True) -> list[tuple[Path, Holder | None]]:
    """The entries of holders that have not ended, or may not have; None for unreadable entries.

    Args:
        remove: remove the entries of those that have ended.
    """
    holders: list[tuple[Path, Holder | None]] = []
    try:
        entries = sorted(_folder(path).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    for entry in entries:
        try:
            holder = _read_file(entry)
        except FileNotFoundError:
            continue
        except OSError:
            holder = None
        if holder is None or not holder.has_ended():
            holders.append((entry, holder))
        elif remove:
            with contextlib.suppress(OSError):
                entry.unlink()  # names are unique
    if remove and not holders:
        with contextlib.suppress(OSError):
            _folder(path).rmdir()
    return holders


def _check_holders(path: Path, *, remove: bool = True) -> None:
    """Check that the folder of holders is empty; for `remove` see `_holders`.

    Raises:
        Taken: a process is in it.
    """
    for entry, holder in _holders(path, remove=remove):
        if holder is None:
            raise Taken(UNKNOWN, _remedy(entry))
        _respect(holder, entry)


def _respect(holder: Holder, file: Path) -> None:
    """Raise Taken unless the holder's process has ended; `file` describes it.

    Raises:
        Taken: it has not, or that cannot be determined.
    """
    ended = holder.has_ended()
    if not ended:
        raise Taken(str(holder), _remedy(file) if ended is None else "")


def _remedy(file: Path) -> str:
    return f"If that process has ended, remove {file} and try again."


# The description of a holder in a file


def _described(kind: str) -> bytes:
    holder = this_process(kind)
    return f"{holder}\n{json.dumps(asdict(holder))}\n".encode()


def _read_file(path: Path) -> Holder | None:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return _read(file)
    finally:
        os.close(file)


def _read(file: int) -> Holder | None:
    """The holder that an open file describes, or None."""
    try:
        fields = json.loads(os.pread(file, MAX_TEXT, 0).decode().partition("\n")[2])
        holder = Holder(**fields)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = [value for name, value in fields.items() if name != "pid"]
    valid = all(isinstance(text, str) for text in texts)
    return holder if valid and type(holder.pid) is int and 0 < holder.pid < 2**31 else None


def _name(file: int) -> str:
    """The first line of the description in an open file."""
    try:
        text = os.pread(file, 200, 0).decode(errors="replace")
    except OSError:  # SMB forbids reading a locked file
        text = ""
    return shown((text.strip().splitlines() or [UNKNOWN])[0])
