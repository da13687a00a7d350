"""The folder of a run: made for one run alone, locked while it runs, telling how it stands."""

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

MAX_ERROR = 8000  # characters of an error in status.json; the report reads 64 KiB of it
LOCK = "run.lock"  # the file that is locked while a process works on the run
STATES = ("waiting", "running", "done", "failed", "preempted", "pruned")


class Busy(InputError):
    """Another process works on the run."""


def holds_run(names: Container[str]) -> bool:
    """Whether a folder with files of these names is that of a run."""
    later = ("status.json", "metrics.jsonl", "about.json")  # written when a run begins
    return "config.yaml" in names and any(name in names for name in later)


def check_free(path: Path) -> None:
    """See, without making anything, that a run may have this folder.

    Raises:
        InputError: it holds a run already, or cannot be made or written to.
    """
    if listing.exists(path / "config.yaml"):
        state = read_status(path).get("state", "unfinished")
        raise InputError(
            f"output_dir={path}: the folder holds a run already ({state}). "
            f"Go on with it by {shell.word('resume', path)}, or choose another folder."
        )
    check_writable(path)


def check_writable(path: Path, key: str = "output_dir") -> None:
    """See, without making anything, that a folder can be made and written to.

    Args:
        key: what names the folder, for messages.

    Raises:
        InputError: it cannot; says which of its parents is in the way.
    """
    parents = (path, *path.absolute().parents)
    dangling = next((p for p in parents if p.is_symlink() and not p.exists()), None)
    if dangling is not None:
        raise InputError(
            f"{key}={path}: {dangling} is a link to {os.readlink(dangling)}, which does not exist."
        )
    there = next(p for p in parents if p.exists())
    if not there.is_dir():
        raise InputError(f"{key}={path}: {there} is a file.")
    try:
        # Permissions alone do not tell, least of all root's. It is removed when it is closed: some
        # file systems cannot remove an open file.
        with tempfile.NamedTemporaryFile(prefix=".", suffix=".tmp", dir=there):
            pass
    except OSError as error:
        raise InputError(
            f"{key}={path}: {there} cannot be written to ({error.strerror})."
        ) from None


def create(path: Path, config: dict[str, Any], *, unique: bool) -> Path:
    """Make the folder of a new run, with its configuration in it, and return it.

    A folder that is new appears under its name with the configuration: whoever sees it can resume.

    Args:
        unique: add "-2", "-3", ... where a folder of this name is there already: two runs that
            start in the same second get two folders. Otherwise the folder may exist, if no run
            has left its configuration in it.

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
        raise InputError(f"output_dir={path}: cannot make it ({error.strerror}).") from None


def _create_new(path: Path, config: dict[str, Any], unique: bool) -> Path:
    """Fill a folder beside the path, and give it its name in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    temporary.mkdir()
    wanted, number = path, 1
    try:
        write_config(temporary, config)
        crashpoint("run.filled")
        while True:
            try:
                atomic.rename_folder(temporary, path)  # fails where one with something in it is
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
    """Put a file on the disk, if it is there and can be."""
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        atomic.sync(opened.fileno())


def clean(path: Path) -> None:
    """Remove what a process that was killed left half-written in a run's folder and one below."""
    try:
        folders = [path, *(Path(e.path) for e in listing.entries(path) if listing.is_folder(e))]
        left = [file for folder in folders for file in listing.paths(folder, ".*.tmp")]
    except listing.Unreachable as error:  # such files do no harm, they only take room
        logger.warning("%s What an earlier start left half-written in it stays.", error)
        return
    for file in left:
        if file.is_file():
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path, *, new: bool = False) -> Iterator[None]:
    """Hold the run folder against a second process; freed when this one ends, however it ends.

    Args:
        new: it was made for this run, and is free for the next one where it cannot be locked.

    Raises:
        Busy: another process holds it; the message says which.
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
    """Remove the folder of a run that has not begun; what was in it before stays."""
    with contextlib.suppress(OSError):
        (path / "config.yaml").unlink()
        (path / LOCK).unlink(missing_ok=True)
        path.rmdir()


def is_locked(path: Path) -> bool:
    """Whether a process holds the run folder at this moment."""
    return file_locks.is_taken(path / LOCK)


def remedy(path: Path) -> str:
    """What to do about a lock whose holder may have ended, unseen from here; else empty."""
    taken = file_locks.find(path / LOCK)
    return taken.remedy if taken is not None else ""


def write_config(path: Path, config: dict[str, Any], step: int | None = None) -> None:
    """Write the configuration of the run to `config.yaml`.

    Args:
        step: where a run goes on with other settings: the old ones are kept as
            `config.until-step-0000500.yaml`.
    """
    text = stored_config.to_yaml(config)
    file = path / "config.yaml"
    old = file.read_text() if step is not None and file.exists() else None
    if old == text:
        return
    if old is not None and step and _settings(_loaded(file)) != _settings(config):
        # A copy, not a new name: at no moment is the folder without a configuration.
        atomic.write(path / f"config.until-step-{step:07d}.yaml", old, durable=True)
    atomic.write(file, text, durable=True)


def _loaded(file: Path) -> dict[str, Any]:
    """A configuration of ours, as it should be; what is damaged counts as empty."""
    try:
        return stored_config.read(read_yaml(file))
    except Refused:
        return {}


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the words that led to it."""
    return {key: value for key, value in config.items() if key != "overrides"}


def read_config(path: Path) -> dict[str, Any]:
    """The configuration a run was started with.

    Raises:
        InputError: the folder is not that of a run, or `Unreachable`: it cannot be read.
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
    """Write `status.json`: state is one of STATES, step the last one finished.

    Args:
        more: what is known of `total` (steps in all), `saved` (step of the newest checkpoint),
            `seconds` (of work, over all starts) and `error`; None is left out.
    """
    status = {"state": state, "step": step} | {k: v for k, v in more.items() if v is not None}
    if "error" in status:
        status["error"] = str(status["error"])[:MAX_ERROR]
    if "words" in status:  # for a table alone: of a job that was refused
        status["words"] = [word[:200] for word in status["words"][:100]]
    atomic.write(path / "status.json", json.dumps(status) + "\n")


def change_status(path: Path, **changes: Any) -> None:
    """Write `status.json` with some entries changed, for a run that could not do so itself."""
    told = read_status(path) | changes
    state, step = told.pop("state"), told.pop("step", 0)
    write_status(path, state, step, **told)


def read_status(path: Path) -> dict[str, Any]:
    """What `status.json` says, or an empty dict where there is none; what is no state, no number or
    no text where one belongs is left out."""
    return {
        name: value
        for name, value in _read_json(path / "status.json").items()
        if name not in _MEANS or _MEANS[name](value)
    }


def _is_figure(value: Any) -> bool:
    """Whether a value of JSON is a count or a time: false for true, NaN, and what has no end."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return numeric and 0 <= value < 2**63


# What entries of `status.json` must be, where they are there.
_MEANS: dict[str, Callable[[Any], bool]] = {
    "state": lambda value: isinstance(value, str) and value in STATES,
    "error": lambda value: isinstance(value, str),
    "words": lambda value: isinstance(value, list) and all(isinstance(w, str) for w in value),
    **dict.fromkeys(("step", "total", "saved", "seconds"), _is_figure),
}


def _read_json(file: Path) -> dict[str, Any]:
    """A small file of ours, as it should be; what is damaged counts as not there."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def note(path: Path, **facts: Any) -> None:
    """Add what is learnt of a run while it starts (device, parameters, ...) to `about.json`."""
    atomic.write(path / "about.json", json.dumps(read_about(path) | facts, indent=1) + "\n")


def read_about(path: Path) -> dict[str, Any]:
    """What `about.json` says, or an empty dict where there is none."""
    return _read_json(path / "about.json")
