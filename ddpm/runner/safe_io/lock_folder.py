"""The folder `<file>.held`, where the kernel offers no lock: a file in it describes each holder."""

import contextlib
import errno
import os
import secrets
import shutil
from pathlib import Path

from ddpm.runner.safe_io.kernel_locks import FOLDER, NONE, UNSUPPORTED, warn_once
from ddpm.runner.safe_io.lock_holder import (
    UNKNOWN,
    Holder,
    Taken,
    description,
    read_file,
    remedy,
    respect,
)

TRIES = 20


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def enter_alone(path: Path) -> Path | None:
    """Create the folder of holders with this process in it, by one rename that fails if there is a
    holder; returns the entry, or None if the file system cannot do that either.

    Raises:
        Taken: another process is in the folder.
    """
    folder = _folder(path)
    for _ in range(TRIES):
        temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
        temporary.mkdir()
        try:
            entry = _write_entry(temporary)
            os.rename(temporary, folder)  # replaces an empty folder only
            return folder / entry.name
        except OSError as error:
            failure = error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        check_holders(path)  # removes a folder without holders: the next rename succeeds
    if failure.errno not in UNSUPPORTED | {errno.EXDEV}:
        raise failure
    warn_once(path, NONE, failure)
    return None


def enter(path: Path) -> Path:
    """Add this process to the holders; returns its entry."""
    for _ in range(TRIES):
        try:
            _folder(path).mkdir(exist_ok=True)
            return _write_entry(_folder(path))
        except FileNotFoundError as error:  # the last other holder removed the empty folder
            failure = error
    raise failure


def leave(entry: Path) -> None:
    """Remove an entry, and the folder if it was the last."""
    with contextlib.suppress(OSError):
        entry.unlink()
    with contextlib.suppress(OSError):
        entry.parent.rmdir()  # fails if others are in it


def _write_entry(folder: Path) -> Path:
    entry = folder / f"{os.getpid()}-{secrets.token_hex(6)}"  # a name that never existed before
    entry.write_bytes(description(FOLDER))
    return entry


def holders_of(path: Path, *, remove: bool = True) -> list[tuple[Path, Holder | None]]:
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
            holder = read_file(entry)
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


def check_holders(path: Path, *, remove: bool = True) -> None:
    """Check that the folder of holders is empty; for `remove` see `holders_of`.

    Raises:
        Taken: a process is in it.
    """
    for entry, holder in holders_of(path, remove=remove):
        if holder is None:
            raise Taken(UNKNOWN, remedy(entry))
        respect(holder, entry)
