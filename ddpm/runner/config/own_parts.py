"""Why a part in the user's own folder cannot be imported."""

import contextlib
import importlib.util
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

from ddpm.errors import InputError, causes, one_line, shown
from ddpm.runner import own_folder
from ddpm.runner.config import catalog


@contextlib.contextmanager
def explained(target: str) -> Iterator[None]:
    """While open, an error from importing a part of the user's is one of the user.

    Raises:
        InputError: names the user's file; also if another module of its name is found first.
    """
    named_in = catalog.own_targets().get(target)
    if named_in is None:
        yield
        return
    own_folder.make_importable()
    _check_found(target.split(".")[0])
    log = logging.getLogger("hydra.utils")
    log.addFilter(_nothing)  # Hydra would print the same first
    try:
        yield
    except (ImportError, ValueError) as error:
        *_, cause = causes(error)
        reason = f"{type(cause).__name__}: {one_line(cause)}"
        place = _line_of(cause) or named_in
        raise InputError(f"{place}: {shown(target)} cannot be imported ({reason}).") from error
    finally:
        log.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    """A filter that lets no record pass."""
    return False


def _check_found(name: str) -> None:
    """Check that Python finds a module in the user's own folder, if there is one of this name.

    Raises:
        InputError: another one comes first.
    """
    folder = own_folder.current()
    assert folder is not None
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # not a name, or of a module that comes from no file
        return
    found = spec.origin if spec is not None and spec.origin else ""
    for file in filter(Path.is_file, (folder / f"{name}.py", folder / name / "__init__.py")):
        if Path(found).resolve() != file.resolve():
            raise InputError(
                f"{file}: Python finds another module of this name ({found}); rename it."
            )


def _line_of(error: BaseException) -> str | None:
    """The last line in the user's own folder that led to an error: `file:line`."""
    folder = own_folder.current()
    assert folder is not None
    frames = traceback.extract_tb(error.__traceback__)
    lines = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(error, SyntaxError):
        lines.append((error.filename or "", error.lineno))
    own = [f"{file}:{line}" for file, line in lines if Path(file).is_relative_to(folder)]
    return own[-1] if own else None
