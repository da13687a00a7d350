"""Picture files that the command line names."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ddpm.data.decode import OutOfReach, Unreadable
from ddpm.errors import InputError

Made = TypeVar("Made")


def read_picture(key: str, path: str, read: Callable[[Path], Made], hint: str = "") -> Made:
    """What `read` makes of the file that `key` names.

    Raises:
        InputError: it cannot be read; says which key is to be changed.
    """
    try:
        return read(Path(path))
    except Unreadable as error:
        raise InputError(f"{key}: cannot read {path!r} ({error.reason}).{hint}") from error
    except OutOfReach as error:
        raise InputError(f"{key}: {str(error).removeprefix('data: ')}") from error
