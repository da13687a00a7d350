"""Folder listings that raise when something cannot be read.

`Path.glob`, `Path.rglob` and `os.walk` treat a folder that cannot be listed as empty, and newer
versions of `Path.exists` treat a file that cannot be accessed as missing. On a network disk,
images, jobs and checkpoints would silently disappear. All of ddpm/ lists folders through this
module; a test checks that.
"""

import errno
import os
from fnmatch import fnmatchcase
from pathlib import Path

from ddpm.errors import InputError, shown

MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # the path does not exist


class Unreachable(InputError):
    """A folder that cannot be listed, or a file that cannot be accessed or read."""

    def __init__(self, path: str | Path, error: OSError, verb: str = "listed") -> None:
        self.path, self.reason = Path(path), error.strerror or str(error)
        super().__init__(f"{shown(path, 500)}: cannot be {verb} ({self.reason}).")


def entries(folder: str | Path, *, needed: bool = False) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, as `os.scandir` yields them; none if the folder does
    not exist.

    Args:
        needed: raise if the folder does not exist.

    Raises:
        Unreachable: the folder cannot be listed completely.
    """
    try:
        with os.scandir(folder) as scanned:
            return sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        if error.errno in MISSING and not needed:
            return []
        raise Unreachable(folder, error) from None


def paths(folder: str | Path, pattern: str = "*") -> list[Path]:
    """The entries of a folder that match a shell pattern, sorted by name.

    Raises:
        Unreachable: see `entries`.
    """
    return [Path(folder, e.name) for e in entries(folder) if fnmatchcase(e.name, pattern)]


def exists(path: str | Path) -> bool:
    """Whether a path exists; a dangling link does not.

    Raises:
        Unreachable: the path cannot be accessed.
    """
    return stat(path) is not None


def stat(path: str | Path, *, follow_links: bool = True) -> os.stat_result | None:
    """`os.stat` of a path; None if it does not exist.

    Raises:
        Unreachable: the path cannot be accessed.
    """
    try:
        return os.stat(path, follow_symlinks=follow_links)
    except OSError as error:
        if error.errno in MISSING:
            return None
        raise Unreachable(path, error, "looked at") from None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one.

    Raises:
        Unreachable: the path cannot be accessed.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in MISSING:
            return False
        raise Unreachable(entry.path, error, "looked at") from None


def below(folder: str | Path, pattern: str) -> list[Path]:
    """The matching entries of a folder and its subfolders; links are not followed.

    Raises:
        Unreachable: see `entries`.
    """
    matches, todo = [], [str(folder)]
    while todo:
        inside = entries(todo.pop())
        matches += [Path(e.path) for e in inside if fnmatchcase(e.name, pattern)]
        todo += [e.path for e in inside if is_folder(e) and not e.is_symlink()]
    return sorted(matches)
