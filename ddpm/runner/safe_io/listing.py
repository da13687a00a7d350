"""The entries of folders, with nothing left out in silence.

`Path.glob`, `Path.rglob` and `os.walk` treat a folder that cannot be listed like an empty one, and
newer versions of `Path.exists` a file that cannot be looked at like one that is not there. On a
network disk that is how images, jobs and checkpoints vanish. All of ddpm/ lists folders by this
module; a test sees to that.
"""

import errno
import os
from fnmatch import fnmatchcase
from pathlib import Path

from ddpm.errors import InputError, shown

MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # nothing is there; all else is a failure


class Unreachable(InputError):
    """A folder that cannot be listed, or a file that cannot be looked at or read, and why."""

    def __init__(self, path: str | Path, error: OSError, verb: str = "listed") -> None:
        self.path, self.reason = Path(path), error.strerror or str(error)
        super().__init__(f"{shown(path, 500)}: cannot be {verb} ({self.reason}).")


def entries(folder: str | Path, *, needed: bool = False) -> list[os.DirEntry[str]]:
    """What is in a folder, by name, as `os.scandir` gives it; nothing where there is no folder,
    unless it is `needed`.

    Raises:
        Unreachable: it is there, and cannot be listed to its end.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        if error.errno in MISSING and not needed:
            return []
        raise Unreachable(folder, error) from None


def paths(folder: str | Path, pattern: str = "*") -> list[Path]:
    """The entries of one folder whose names match a pattern of the shell, by name.

    Raises:
        Unreachable: see `entries`.
    """
    return [Path(folder, e.name) for e in entries(folder) if fnmatchcase(e.name, pattern)]


def exists(path: str | Path) -> bool:
    """Whether there is something under this name; a link that leads nowhere counts as nothing.

    Raises:
        Unreachable: it cannot be determined, for the reason given.
    """
    return stat(path) is not None


def stat(path: str | Path, *, follow_links: bool = True) -> os.stat_result | None:
    """What `os.stat` says of a path; None where nothing is there.

    Raises:
        Unreachable: it cannot be determined, for the reason given.
    """
    try:
        return os.stat(path, follow_symlinks=follow_links)
    except OSError as error:
        if error.errno in MISSING:
            return None
        raise Unreachable(path, error, "looked at") from None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one.

    Raises:
        Unreachable: it cannot be determined, for the reason given.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in MISSING:
            return False
        raise Unreachable(entry.path, error, "looked at") from None


def below(folder: str | Path, pattern: str) -> list[Path]:
    """The entries that match, of a folder and of all folders in it; links are not followed.

    Raises:
        Unreachable: see `entries`.
    """
    found, todo = [], [str(folder)]
    while todo:
        inside = entries(todo.pop())
        found += [Path(e.path) for e in inside if fnmatchcase(e.name, pattern)]
        todo += [e.path for e in inside if is_folder(e) and not e.is_symlink()]
    return sorted(found)
