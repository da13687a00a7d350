"""Locks of the kernel on an open file: `flock`, or where the file system has none `record`.

A record lock belongs to the open file description (Linux 3.15 and later): closing another
descriptor of the same file does not release it. Both end with the process, however it ends.
"""

import errno
import fcntl
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path

EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
FOLDER, NONE = "folder", "none"  # the kinds where the kernel offers none, and where nothing does

# Error codes of system calls that the file system does not support.
UNSUPPORTED = frozenset(
    (
        *(errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL),
        *(errno.EBADF, errno.ENODEV, errno.ENOTTY, errno.EPERM),
    )
)
TAKEN = (errno.EAGAIN, errno.EACCES)  # EACCES: from fcntl, and from flock on SMB

logger = logging.getLogger(__name__)


def _flock(file: int, mode: int, wait: bool) -> None:
    fcntl.flock(file, mode | (0 if wait else fcntl.LOCK_NB))


def _record(file: int, mode: int, wait: bool) -> None:
    """Lock the whole file with `fcntl` for this open file description (Linux 3.15 and later)."""
    command = getattr(fcntl, "F_OFD_SETLKW" if wait else "F_OFD_SETLK", None)
    if command is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    kind = fcntl.F_WRLCK if mode == EXCLUSIVE else fcntl.F_RDLCK
    fcntl.fcntl(file, command, struct.pack("hhqqi", kind, os.SEEK_SET, 0, 0, 0))


_CALLS: dict[str, Callable[[int, int, bool], None]] = {"flock": _flock, "record": _record}


def lock(path: Path, file: int, mode: int, wait: bool, *, silent: bool = False) -> str | None:
    """Lock an open file, of this path. Returns the kind of the lock, or None if the file system
    supports none.

    Args:
        mode: EXCLUSIVE or SHARED.
        silent: give no warning where the file system lacks `flock`.

    Raises:
        OSError: another process holds it (of number TAKEN), or the disk fails.
    """
    unsupported: OSError | None = None
    for kind, call in _CALLS.items():
        try:
            call(file, mode, wait)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            unsupported = unsupported or error
        else:
            if unsupported is not None and not silent:
                warn_once(path, kind, unsupported)
            return kind
    if unsupported is not None and not silent:
        warn_once(path, FOLDER, unsupported)
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


def warn_once(path: Path, kind: str, error: OSError) -> None:
    """Warn about a file system without `flock`, once per process and device."""
    device = os.stat(path.parent).st_dev, kind
    if device not in _warned:
        _warned.add(device)
        what = "flock" if kind == "record" else "locks"
        reason = error.strerror or str(error)
        logger.warning("%s: the file system has no %s (%s). %s", path, what, reason, _ADVICE[kind])
