"""Files written whole or not at all, flushed to the disk, and stamped to detect changes.

Features that the file system does not support are skipped; supported ones that fail are errors.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ddpm.runner.safe_io.kernel_locks import UNSUPPORTED

# Errors of SMB and some FUSE file systems when the file to replace is open in another process.
_IN_USE = (errno.EBUSY, errno.ETXTBSY, errno.EACCES, errno.EPERM)
_PAUSES = (0.05, 0.1, 0.2, 0.4)  # seconds between attempts
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a full disk, a quota or a limit
_NO_FSYNC = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
COARSE_SECONDS = 3  # FAT has time stamps of two seconds


def sync(file: int) -> None:
    """Flush an open file to the disk, if the file system supports it.

    Raises:
        OSError: the flush failed.
    """
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk; otherwise a power cut can undo a rename.

    Raises:
        OSError: the flush failed.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EACCES, errno.EISDIR}:
            raise
        return  # this file system cannot open folders
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno != errno.EBADF:  # raised for read-only descriptors
            raise
    finally:
        os.close(descriptor)


def replace(new: Path | str, path: Path | str) -> None:
    """`os.replace`, retried while another process reads `path` on file systems that forbid this.

    Raises:
        OSError: as `os.replace` does.
    """
    for seconds in _PAUSES:
        try:
            os.replace(new, path)
            return
        except OSError as error:
            if error.errno not in _IN_USE or not os.access(Path(path).parent, os.W_OK):
                raise
        time.sleep(seconds)
    os.replace(new, path)


@contextlib.contextmanager
def replacing(*paths: Path, durable: bool = False) -> Iterator[list[Path]]:
    """Temporary names beside `paths`; what the block writes there replaces `paths`, in this order,
    unless the block raises. No reader ever sees half a file.

    Args:
        durable: wait until the bytes are on the disk first. Otherwise a power cut can leave the
            new name with an empty file.

    Raises:
        OSError: as the system calls do; the temporary files are removed.
    """
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    try:
        yield temporary
        for new in temporary if durable else []:
            with open(new, "rb+") as file:
                sync(file.fileno())
        for new, path in zip(temporary, paths, strict=True):
            replace(new, path)
    finally:
        for new in temporary:
            new.unlink(missing_ok=True)


def write(path: Path, data: str | bytes, *, durable: bool = False) -> None:
    """Write a file whole or not at all, text as UTF-8; see `replacing`."""
    with replacing(path, durable=durable) as (temporary,):
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def rename_folder(new: Path, path: Path) -> None:
    """`os.rename` for a folder of files. If the file system cannot rename folders, the files move
    one by one, config.yaml first.

    Raises:
        OSError: the target is a folder that is not empty (ENOTEMPTY, EEXIST), or another reason.
    """
    try:
        os.rename(new, path)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EXDEV, errno.EACCES}:
            raise
        path.mkdir()
        for file in sorted(new.iterdir(), key=lambda file: file.name != "config.yaml"):
            replace(file, path / file.name)
        new.rmdir()


@contextlib.contextmanager
def bare_copies() -> Iterator[None]:
    """While open, `shutil` ignores failures to copy mode and times, as on FAT and SMB: for
    libraries that copy files."""
    originals = {name: getattr(shutil, name) for name in ("copymode", "copystat")}

    def tolerant(call: Callable[..., None]) -> Callable[..., None]:
        def copy(*arguments: Any, **options: Any) -> None:
            try:
                call(*arguments, **options)
            except OSError as error:
                if error.errno not in UNSUPPORTED | {errno.EACCES}:
                    raise

        return copy

    for name, call in originals.items():
        setattr(shutil, name, tolerant(call))
    try:
        yield
    finally:
        for name, call in originals.items():
            setattr(shutil, name, call)


def free_bytes(folder: Path) -> int | None:
    """Free space on the disk; None if the file system does not report it, as some FUSE do not."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None


def stamp(file: Path) -> tuple[int, ...] | None:
    """A value that differs after a file has changed. None if it changed a moment ago on a file
    system with time stamps in seconds: a further change could go unnoticed.

    Raises:
        OSError: the file does not exist.
    """
    status = file.stat()
    in_seconds = status.st_mtime_ns % 10**9 == 0
    if in_seconds and abs(time.time() - status.st_mtime) < COARSE_SECONDS:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
