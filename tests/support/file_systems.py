"""File systems that offer less than the one the tests run on."""

import errno
import fcntl
import os
from pathlib import Path

# What file systems without locks were seen to answer: Lustre, NFS without its lock service, FUSE,
# SMB, and NFS for a file that is open for reading alone.
CODES = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF]
RECORD = (fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW)

KINDS = ["flock", "record", "folder", "none"]


def error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def is_below(file: int, folder: Path) -> bool:
    return Path(os.readlink(f"/proc/self/fd/{file}")).is_relative_to(folder)


def offer(patch, folder: Path, kind: str, code: int = errno.ENOSYS) -> None:
    """Let the files below a folder have this kind of lock and none that is better."""
    flock, control, rename = fcntl.flock, fcntl.fcntl, os.rename

    def no_flock(file, operation):
        number = file if isinstance(file, int) else file.fileno()
        if kind != "flock" and is_below(number, folder):
            raise error(code)
        return flock(file, operation)

    def no_record(file, command, argument=0):
        if kind in ("folder", "none") and command in RECORD and is_below(file, folder):
            raise error(code)
        return control(file, command, argument)

    def no_move(source, target):
        if kind == "none" and str(target).endswith(".held"):
            raise error(code)
        return rename(source, target)

    patch.setattr(fcntl, "flock", no_flock)
    patch.setattr(fcntl, "fcntl", no_record)
    patch.setattr(os, "rename", no_move)
