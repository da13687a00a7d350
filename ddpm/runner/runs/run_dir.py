"""The folder of a run: created for one run, locked while it runs, with its state in status.json."""

import contextlib
import errno
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from ddpm.errors import InputError
from ddpm.runner.runs import stored_config
from ddpm.runner.safe_io import atomic, file_locks, listing
from ddpm.runner.safe_io.failpoint import crashpoint
from ddpm.runner.safe_io.plain import Refused
from ddpm.runner.safe_io.yaml_json import read_yaml
from ddpm.runner.terminal import shell

logger = logging.getLogger(__name__)

MAX_ERROR = 8000  # characters of an error in status.json, of which the report reads 64 KiB
LOCK = "run.lock"  # locked while a process works on the run
STATES = ("waiting", "running", "done", "failed", "preempted", "pruned")


class Busy(InputError):
    """Another process works on the run."""


def holds_run(names: Container[str]) -> bool:
    """Whether a folder with files of these names belongs to a run."""
    written_at_start = ("status.json", "metrics.jsonl", "about.json")
    return "config.yaml" in names and any(name in names for name in written_at_start)


def check_free(path: Path) -> None:
    """Check, without creating it, that a folder is free for a new run.

    Raises:
        Busy: it holds a run that a process works on now.
        InputError: it holds a run, or cannot be created or written to.
    """
    if listing.exists(path / "config.yaml"):
        if taken := file_locks.find(path / LOCK):
            watch = shell.command("job=watch", shell.word("output_dir", path))
            message = (
                f"output_dir={path}: the folder holds a run that is running now, by "
                f"{taken.holder}. To see it: {watch}\nFor another run, choose another folder."
            )
            raise Busy(f"{message} {taken.remedy}".rstrip())
        state = read_status(path).get("state", "unfinished")
        raise InputError(
            f"output_dir={path}: the folder holds a run already ({state}). "
            f"Resume it with {shell.word('resume', path)}, or choose another folder."
        )
    check_writable(path)


def check_writable(path: Path, key: str = "output_dir") -> None:
    """Check, without creating it, that a folder can be created and written to.

    Args:
        key: the key that names the folder, for messages.

    Raises:
        InputError: it cannot; names the parent that prevents it.
    """
    parents = (path, *path.absolute().parents)
    dangling = next((p for p in parents if p.is_symlink() and not p.exists()), None)
    if dangling is not None:
        raise InputError(
            f"{key}={path}: {dangling} is a link to {os.readlink(dangling)}, which does not exist."
        )
    parent = next(p for p in parents if p.exists())
    if not parent.is_dir():
        raise InputError(f"{key}={path}: {parent} is a file.")
    try:
        # Permissions are not conclusive, least of all for root: create a file and remove it.
        with tempfile.NamedTemporaryFile(prefix=".", suffix=".tmp", dir=parent):
            pass
    except OSError as error:
        raise InputError(
            f"{key}={path}: {parent} cannot be written to ({error.strerror})."
        ) from None


def create(path: Path, config: dict[str, Any], *, unique: bool) -> Path:
    """Create the folder of a new run with its configuration, and return the path.

    A new folder appears under its name together with its configuration, so it can be resumed as
    soon as it is visible.

    Args:
        unique: append "-2", "-3", ... if the folder exists, so that two runs that start in the same
            second get different folders. Otherwise it may exist if it holds no configuration.

    Raises:
        InputError: see `check_free`.
    """
    try:
        if not unique:
            check_free(path)
            if path.is_dir():
                write_config(path, config)
                return path
        return _create_new(path, config, unique)
    except OSError as error:
        raise InputError(f"output_dir={path}: cannot create it ({error.strerror}).") from None


def _create_new(path: Path, config: dict[str, Any], unique: bool) -> Path:
    """Fill a temporary folder beside the path, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    temporary.mkdir()
    wanted, number = path, 1
    try:
        write_config(temporary, config)
        crashpoint("run.filled")
        while True:
            try:
                atomic.rename_folder(temporary, path)  # fails if it exists and is not empty
                crashpoint("run.created")
                return path
            except OSError as error:
                if not unique or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                number += 1
                path = wanted.with_name(f"{wanted.name}-{number}")
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync(file: Path) -> None:
    """Flush a file to the disk, if it exists."""
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        atomic.sync(opened.fileno())


def clean(path: Path) -> None:
    """Remove temporary files of killed processes in a run's folder and its direct subfolders."""
    try:
        folders = [path, *(Path(e.path) for e in listing.entries(path) if listing.is_folder(e))]
        leftovers = [file for folder in folders for file in listing.paths(folder, ".*.tmp")]
    except listing.Unreachable as error:  # they only take space
        logger.warning("%s Temporary files of an earlier start stay in it.", error)
        return
    for file in leftovers:
        if file.is_file():
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path, *, new: bool = False) -> Iterator[None]:
    """Lock the run folder while open; the lock is released when the process ends, however it ends.

    Args:
        new: the folder was created for this run, and is removed if it cannot be locked.

    Raises:
        Busy: another process holds the lock; the message names it.
        InputError: the folder cannot be locked.
    """
    try:
        held = file_locks.take(path / LOCK)
    except file_locks.Taken as taken:
        message = f"{path}: this run is being worked on by {taken.holder}. {taken.remedy}"
        raise Busy(message.rstrip()) from None
    except OSError as error:
        if new:
            _remove_new(path)
        raise InputError(f"{path}: the folder cannot be locked ({error.strerror}).") from error
    try:
        yield
    finally:
        held.release()


def _remove_new(path: Path) -> None:
    """Remove the folder of a run that has not started; files that are not of the run stay."""
    with contextlib.suppress(OSError):
        (path / "config.yaml").unlink()
        (path / LOCK).unlink(missing_ok=True)
        path.rmdir()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of the run folder now."""
    return file_locks.is_taken(path / LOCK)


def remedy(path: Path) -> str:
    """Advice on a lock whose holder may have ended on another machine; otherwise empty."""
    taken = file_locks.find(path / LOCK)
    return taken.remedy if taken is not None else ""


def write_config(path: Path, config: dict[str, Any], step: int | None = None) -> None:
    """Write the configuration of the run to `config.yaml`.

    Args:
        step: the step at which a run is resumed with changed settings; the previous ones are kept
            as `config.until-step-0000500.yaml`.
    """
    text = stored_config.to_yaml(config)
    file = path / "config.yaml"
    old = file.read_text() if step is not None and file.exists() else None
    if old == text:
        return
    if old is not None and step and _settings(_loaded(file)) != _settings(config):
        # Copied, not renamed: the folder always has a config.yaml.
        atomic.write(path / f"config.until-step-{step:07d}.yaml", old, durable=True)
    atomic.write(file, text, durable=True)


def _loaded(file: Path) -> dict[str, Any]:
    """The configuration in a file; empty if it is damaged."""
    try:
        return stored_config.read(read_yaml(file))
    except Refused:
        return {}


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the overrides of the command line."""
    return {key: value for key, value in config.items() if key != "overrides"}


def read_config(path: Path) -> dict[str, Any]:
    """The configuration a run was started with.

    Raises:
        InputError: the folder is not that of a run.
        Unreachable: the file cannot be read.
    """
    file = path / "config.yaml"
    try:
        return stored_config.read(read_yaml(file))
    except OSError as error:
        if error.errno not in listing.MISSING:
            raise listing.Unreachable(file, error, "read") from None
        raise InputError(f"{path} is not the folder of a run (no config.yaml).") from None
    except Refused as error:
        raise InputError(f"{file} is not the configuration of a run: {error}.") from None


def write_status(path: Path, state: str, step: int = 0, **more: Any) -> None:
    """Write `status.json`.

    Args:
        state: one of STATES.
        step: the last finished step.
        more: `total` (number of steps), `saved` (step of the newest checkpoint), `seconds` (run
            time over all starts) and `error`; None is left out.
    """
    status: dict[str, Any] = {"state": state, "step": step}
    status |= {k: v for k, v in more.items() if v is not None}
    if "error" in status:
        status["error"] = str(status["error"])[:MAX_ERROR]
    if "words" in status:  # of a refused job, for the status table only
        status["words"] = [word[:200] for word in status["words"][:100]]
    atomic.write(path / "status.json", json.dumps(status) + "\n")


def change_status(path: Path, **changes: Any) -> None:
    """Change entries of `status.json`, for a run that could not do so itself."""
    status = read_status(path) | changes
    write_status(path, status.pop("state"), status.pop("step", 0), **status)


def read_status(path: Path) -> dict[str, Any]:
    """The entries of `status.json` without those of a wrong type; empty without the file."""
    return {
        name: value
        for name, value in _read_json(path / "status.json").items()
        if name not in _IS_VALID or _IS_VALID[name](value)
    }


def _is_figure(value: Any) -> bool:
    """Whether a JSON value is a finite number from 0; booleans are not."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return numeric and 0 <= value < 2**63


# Checks of the entries of `status.json`.
_IS_VALID: dict[str, Callable[[Any], bool]] = {
    "state": lambda value: isinstance(value, str) and value in STATES,
    "error": lambda value: isinstance(value, str),
    "words": lambda value: isinstance(value, list) and all(isinstance(w, str) for w in value),
    **dict.fromkeys(("step", "total", "saved", "seconds"), _is_figure),
}


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a small JSON file; empty if it is missing or damaged."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def note(path: Path, **facts: Any) -> None:
    """Add facts that are known after the start (device, parameters, ...) to about.json."""
    atomic.write(path / "about.json", json.dumps(read_about(path) | facts, indent=1) + "\n")


def read_about(path: Path) -> dict[str, Any]:
    """The content of `about.json`; empty if there is none."""
    return _read_json(path / "about.json")
