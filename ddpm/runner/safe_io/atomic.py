"""Write files through to the disk, replace them, and notice that they have changed.

A feature that the file system lacks is skipped; one that it has and that fails is an error.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ddpm.runner.safe_io.file_locks import UNSUPPORTED

# What SMB and some FUSE answer while another process has the file open that is to be replaced.
_IN_USE = (errno.EBUSY, errno.ETXTBSY, errno.EACCES, errno.EPERM)
_PAUSES = (0.05, 0.1, 0.2, 0.4)  # seconds between the tries to replace it
_NO_FSYNC = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
COARSE_SECONDS = 3  # FAT counts times in steps of two


def sync(file: int) -> None:
    """Wait until the bytes of an open file are on the disk, where the file system can say so.

    Raises:
        OSError: they could not be written.
    """
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Put the folder's entries on the disk: without it a power cut can undo a rename.

    Raises:
        OSError: they could not be written.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EACCES, errno.EISDIR}:
            raise
        return  # no such thing as an open folder
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno != errno.EBADF:  # said of descriptors that are not open for writing
            raise
    finally:
        os.close(descriptor)


def replace(new: Path | str, path: Path | str) -> None:
    """`os.replace`; where `path` cannot be replaced while another process reads it, try again.

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
    """`os.rename` for a folder of files. Where the file system renames files and no folders, the
    files move one by one, config.yaml before the others.

    Raises:
        OSError: there is a folder with something in it (ENOTEMPTY, EEXIST), or another reason.
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
    """While open, `shutil` makes copies without mode and time where those cannot be set, as on FAT
    and SMB. Libraries use it."""
    before = {name: getattr(shutil, name) for name in ("copymode", "copystat")}

    def tolerant(call: Callable[..., None]) -> Callable[..., None]:
        def copy(*arguments: Any, **options: Any) -> None:
            try:
                call(*arguments, **options)
            except OSError as error:
                if error.errno not in UNSUPPORTED | {errno.EACCES}:
                    raise

        return copy

    for name, call in before.items():
        setattr(shutil, name, tolerant(call))
    try:
        yield
    finally:
        for name, call in before.items():
            setattr(shutil, name, call)


def free_bytes(folder: Path) -> int | None:
    """The room on the disk; None where the file system does not tell, as some FUSE do not."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None


def stamp(file: Path) -> tuple[int, ...] | None:
    """What changes with a file; None: it changed a moment ago, on a file system that counts times
    in seconds, and could do so again unseen.

    Raises:
        OSError: there is no such file.
    """
    found = file.stat()
    in_seconds = found.st_mtime_ns % 10**9 == 0
    if in_seconds and abs(time.time() - found.st_mtime) < COARSE_SECONDS:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
