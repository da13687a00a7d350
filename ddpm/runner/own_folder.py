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
    """Use the options and parts of a folder from now on, or of none."""
    global _folder
    _folder = folder


def make_importable() -> None:
    """Let Python search the folder for modules, after all other folders: its files shadow no
    installed module. Done when a part in it is built: Hydra imports plugins from any folder that
    Python searches."""
    if _folder is not None and str(_folder) not in sys.path:
        sys.path.append(str(_folder))


def holds(module: str) -> bool:
    """Whether the folder has a module or package of this name."""
    if _folder is None:
        return False
    return (_folder / f"{module}.py").is_file() or (_folder / module / "__init__.py").is_file()


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
