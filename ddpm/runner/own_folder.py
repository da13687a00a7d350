"""The user's own folder of options and parts, which `--config-dir` names.

Its files are code, as those under conf/ and ddpm/ are. So only the command line names it, and hands
it to the processes that it starts: no configuration, checkpoint or environment variable does.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

_folder: Path | None = None


def current() -> Path | None:
    """The folder, absolute; None if the command line names none."""
    return _folder


def use(folder: Path | None) -> None:
    """Use the options and parts of a folder from now on, or of none.

    Python searches it for modules after all other folders: its files shadow no installed module.
    """
    global _folder
    _folder = folder
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))


@contextlib.contextmanager
def used(folder: str | Path | None) -> Iterator[None]:
    """Use a folder while open; None: the one in use. Its modules can still be imported afterwards:
    its parts may live longer, and import others when they are called."""
    before = _folder
    if folder is not None:
        use(Path(folder).expanduser().absolute())
    try:
        yield
    finally:
        use(before)
