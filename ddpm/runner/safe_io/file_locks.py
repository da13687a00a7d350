"""Locks between processes, by a file, on whatever file system it lies.

Three kinds of lock are tried in this order, until the file system supports one:

- `flock`. The kernel frees it when the process ends, however it ends.
- `record`: a lock of `fcntl` that belongs to the open file, as that of `flock` does. The kernel
  frees it, too, and closing another descriptor of the same file does not.
- `folder`: a folder `<file>.held` with a file in it that describes the process. The process removes
  it. Of a process that was killed it stays; the next one removes it where it can see that the
  process has ended: on the same machine, or on one that was restarted since. What it cannot see it
  takes for running, and names the file to remove.

Machines may mount one file system with different options, and locks can be short (ENOLCK). So the
holder of an exclusive lock describes itself in the locked file, with the kind of its lock, and
holders of another kind are respected.
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

FOLDER, NONE = "folder", "none"  # kinds of locks, beside those of the kernel
UNKNOWN = "another process"
PROBE_SECONDS = (0.05, 0.1)  # another process may hold the lock just to look at it
WAIT_SECONDS = 0.2  # between two looks at a lock that the kernel cannot wait for
NOTICE_SECONDS = 10  # of waiting, until it is said for whom
MAX_TEXT = 2000  # bytes that describe a holder
TRIES = 20

# What a system call answers where the file system does not offer what it asks for.
UNSUPPORTED = frozenset(
    (
        *(errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL),
        *(errno.EBADF, errno.ENODEV, errno.ENOTTY, errno.EPERM),
    )
)
_TAKEN = (errno.EAGAIN, errno.EACCES)  # EACCES: of fcntl, and of flock on SMB

logger = logging.getLogger(__name__)


class Taken(Exception):
    """Another process holds the lock.

    Args:
        holder: a description of that process: "process 4711 on node3".
        remedy: a sentence on what to do if it has ended; empty where the kernel knows that it runs.
    """

    def __init__(self, holder: str, remedy: str = "") -> None:
        super().__init__(holder)
        self.holder, self.remedy = holder, remedy


@dataclass(frozen=True)
class Holder:
    """A process, described so that another one can find out whether it has ended.

    Args:
        kind: of its lock.
        machine: an id that survives a restart.
        boot: an id that a restart changes.
        namespace: of process ids; containers have their own.
        started: when the process was, as the kernel counts it: ids are used again.
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
        """Whether the process has ended; None: it cannot be known from here."""
        here = own(self.kind)
        if (self.boot, self.namespace) == (here.boot, here.namespace):
            return not _is_running(self.pid, self.started)
        same = self.machine and (self.host, self.machine) == (here.host, here.machine)
        return True if same and self.boot != here.boot else None


def own(kind: str) -> Holder:
    """This process."""
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
    """The words of a small file of the system; empty where it has none."""
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return ""


def _is_running(pid: int, started: str) -> bool:
    """Whether a process of this machine runs that was started then."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's
    state, since = _state_of(pid)
    return state not in ("Z", "X") and (not since or not started or since == started)


def _state_of(pid: int) -> tuple[str, str]:
    """State (R, S, Z, ...) and start of a process; empty where the system does not show them."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return words[0], words[19]
    except (OSError, ValueError, IndexError):
        return "", ""


class Lock:
    """A lock that this process holds until it calls `release`, or ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pid = os.getpid()
        self.file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.described = False  # whether the file says that this process holds it
        self.entry: Path | None = None  # in the folder of holders
        _open.append(self)

    def describe(self, kind: str) -> None:
        """Write into the file who holds it. On a full disk it is held without a name."""
        self.described = True
        with contextlib.suppress(OSError):
            os.ftruncate(self.file, 0)
            os.pwrite(self.file, _described(kind), 0)

    def release(self) -> None:
        """Free the lock; a second time, or in a forked process, there is nothing to do."""
        if self.file is None or self.pid != os.getpid():
            return
        _open.remove(self)
        if self.described:
            with contextlib.suppress(OSError):
                os.ftruncate(self.file, 0)
        if self.entry is not None:
            with contextlib.suppress(OSError):
                self.entry.unlink()
            with contextlib.suppress(OSError):
                self.entry.parent.rmdir()  # unless others are in it
        file, self.file = self.file, None
        os.close(file)

    def abandon(self) -> None:
        """Close the file in a process forked from the holder, which goes on to hold the lock."""
        if self.file is not None:
            os.close(self.file)
            self.file = None


_open: list[Lock] = []  # the locks of this process


def _abandon_all() -> None:
    """In a forked process (a reader of data): it must not keep locks of its parent from being
    freed when that is killed."""
    while _open:
        _open.pop().abandon()


os.register_at_fork(after_in_child=_abandon_all)


@contextlib.contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file while open; for arguments and errors see `take`."""
    lock = take(path, wait=wait)
    try:
        yield
    finally:
        lock.release()


def take(path: Path, *, wait: bool = False, probe: bool = True) -> Lock:
    """Lock a file, which is made where it is missing, for this process alone.

    Args:
        wait: until the process that holds it frees it.
        probe: try again a moment later: another process may hold it just to look at it.

    Raises:
        Taken: another process holds it, and `wait` is false.
        OSError: the file cannot be opened, or the disk fails.
    """
    pauses, began, noticed = list(PROBE_SECONDS if probe else ()), time.monotonic(), False
    while True:
        try:
            return _take(path, wait)
        except Taken as taken:
            if not wait and (taken.remedy or not pauses):
                raise
            if not noticed and time.monotonic() - began > NOTICE_SECONDS:
                noticed = True
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
            lock.describe(kind)  # before the look: of two at once, one at least sees the other
            _check_holders(path)
    except BaseException:
        lock.release()
        raise
    return lock


def join(path: Path) -> tuple[Lock, bool]:
    """Share the lock of a file with others that join. To be called by one process at a time.

    Returns:
        the lock, and whether no other process had it.
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
    """Share the lock of an open file; whether others do, or None where the file system has none."""
    others = False
    try:
        if _lock_in_kernel(lock, fcntl.LOCK_EX, wait=False) is None:
            return None
    except Taken:
        others = True
    _lock_in_kernel(lock, fcntl.LOCK_SH, wait=True)
    return others


def is_taken(path: Path) -> bool:
    """Whether a process holds the lock of a file. Makes no file, and takes no lock to keep."""
    return find(path) is not None


def find(path: Path) -> Taken | None:
    """What `take` would raise now, without a try to take the lock; None: it is free."""
    try:
        _check_holders(path, remove=False)
        file = _open_to_look(path)
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


def _open_to_look(path: Path) -> int:
    """Open a file, for writing where that is allowed: NFS locks no other files (EBADF)."""
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
    """Lock the whole file by `fcntl`, for this opening of it: Linux has that since 3.15."""
    command = getattr(fcntl, "F_OFD_SETLKW" if wait else "F_OFD_SETLK", None)
    if command is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    kind = fcntl.F_WRLCK if mode == fcntl.LOCK_EX else fcntl.F_RDLCK
    fcntl.fcntl(file, command, struct.pack("hhqqi", kind, os.SEEK_SET, 0, 0, 0))


_KERNEL: dict[str, Callable[[int, int, bool], None]] = {"flock": _flock, "record": _record}


def _lock_in_kernel(lock: Lock, mode: int, wait: bool) -> str | None:
    """Lock an open file: the kind of the lock, or None where the file system has none.

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
    missing = None
    for kind, call in _KERNEL.items():
        try:
            call(file, mode, wait)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            missing = missing or error
        else:
            if missing is not None and not silent:
                _say_once(path, kind, missing)
            return kind
    if not silent:
        _say_once(path, FOLDER, missing)
    return None


_MEANS = {
    "record": "Record locks (fcntl) are used instead, which protect as well.",
    FOLDER: (
        "Folders named *.held take their place. Of a process that is killed on another machine "
        "one stays, and the next start names the file to remove."
    ),
    NONE: "Nothing can take their place: see to it that no two processes work in one folder.",
}
_said: set[tuple[int, str]] = set()


def _say_once(path: Path, kind: str, error: OSError) -> None:
    """Warn of a file system without `flock`, once in a process."""
    place = os.stat(path.parent).st_dev, kind
    if place not in _said:
        _said.add(place)
        what = "flock" if kind == "record" else "locks"
        reason = error.strerror or str(error)
        logger.warning("%s: the file system has no %s (%s). %s", path, what, reason, _MEANS[kind])


# Folders that name the holders


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def _enter_alone(lock: Lock) -> str:
    """Make the folder of holders with this process in it, in one move that fails where it has a
    holder; what kind of lock that is.

    Raises:
        Taken: it has.
    """
    folder = _folder(lock.path)
    for _ in range(TRIES):
        made = lock.path.with_name(f".{secrets.token_hex(6)}.tmp")
        made.mkdir()
        try:
            entry = _write_entry(made)
            os.rename(made, folder)  # replaces a folder that is empty, and no other
            lock.entry = folder / entry.name
            return FOLDER
        except OSError as error:
            failure = error
        finally:
            shutil.rmtree(made, ignore_errors=True)
        _check_holders(lock.path)  # if it has none it is removed, and the next move goes well
    if failure.errno not in UNSUPPORTED | {errno.EXDEV}:
        raise failure
    _say_once(lock.path, NONE, failure)
    return NONE


def _enter(lock: Lock) -> None:
    """Add this process to the holders, whoever else is there."""
    for left in reversed(range(TRIES)):
        try:
            _folder(lock.path).mkdir(exist_ok=True)
            lock.entry = _write_entry(_folder(lock.path))
            return
        except FileNotFoundError:  # another one has left, and took the empty folder with it
            if not left:
                raise


def _write_entry(folder: Path) -> Path:
    entry = folder / f"{os.getpid()}-{secrets.token_hex(6)}"  # never a name that was there before
    entry.write_bytes(_described(FOLDER))
    return entry


def _holders(path: Path, *, remove: bool = True) -> list[tuple[Path, Holder | None]]:
    """The entries of holders that have not ended, as far as can be seen; None: unreadable.

    Args:
        remove: the entries of those that have.
    """
    found = []
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
            found.append((entry, holder))
        elif remove:
            with contextlib.suppress(OSError):
                entry.unlink()  # by its name, which no other holder has
    if remove and not found:
        with contextlib.suppress(OSError):
            _folder(path).rmdir()
    return found


def _check_holders(path: Path, *, remove: bool = True) -> None:
    """See that nobody is in the folder of holders; for `remove` see `_holders`.

    Raises:
        Taken: somebody is.
    """
    for entry, holder in _holders(path, remove=remove):
        if holder is None:
            raise Taken(UNKNOWN, _remedy(entry))
        _respect(holder, entry)


def _respect(holder: Holder, file: Path) -> None:
    """Raise Taken unless the holder's process has ended; `file` describes it.

    Raises:
        Taken: it has not, or that cannot be known.
    """
    ended = holder.has_ended()
    if not ended:
        raise Taken(str(holder), _remedy(file) if ended is None else "")


def _remedy(file: Path) -> str:
    return f"If that process has ended, remove {file} and try again."


# What a file says of its holder


def _described(kind: str) -> bytes:
    holder = own(kind)
    return f"{holder}\n{json.dumps(asdict(holder))}\n".encode()


def _read_file(path: Path) -> Holder | None:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return _read(file)
    finally:
        os.close(file)


def _read(file: int) -> Holder | None:
    """The holder that an open file describes; None: it describes none."""
    try:
        fields = json.loads(os.pread(file, MAX_TEXT, 0).decode().partition("\n")[2])
        holder = Holder(**fields)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = [value for name, value in fields.items() if name != "pid"]
    valid = all(isinstance(text, str) for text in texts)
    return holder if valid and type(holder.pid) is int and 0 < holder.pid < 2**31 else None


def _name(file: int) -> str:
    """The first line of what an open file says of its holder."""
    try:
        text = os.pread(file, 200, 0).decode(errors="replace")
    except OSError:  # SMB lets nobody read a locked file
        text = ""
    return shown((text.strip().splitlines() or [UNKNOWN])[0])
