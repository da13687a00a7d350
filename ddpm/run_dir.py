"""The folder of a run: made for one run alone, locked while it runs, telling how it stands."""

import contextlib
import fcntl
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ddpm.errors import InputError

STATES = ("running", "done", "failed", "preempted")


def check_free(path: Path) -> None:
    """See, without making anything, that a run may have this folder.

    Raises:
        InputError: it holds a run already, or cannot be made or written to.
    """
    if (path / "config.yaml").exists():
        state = read_status(path).get("state", "unfinished")
        raise InputError(
            f"output_dir={path}: the folder holds a run already ({state}). "
            f"Go on with it by resume={path}, or choose another folder."
        )
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise InputError(f"output_dir={path}: {there} is a file.")
    try:
        with tempfile.TemporaryFile(
            dir=there
        ):  # permissions alone do not tell, least of all root's
            pass
    except OSError as error:
        raise InputError(
            f"output_dir={path}: {there} cannot be written to ({error.strerror})."
        ) from None


def create(path: Path, *, unique: bool) -> Path:
    """Make the folder of a new run and return it.

    Args:
        unique: add "-2", "-3", ... where a folder of this name is there already: two runs that
            start in the same second get two folders. Otherwise the folder may exist, if no run
            has left its configuration in it.

    Raises:
        InputError: see `check_free`.
    """
    try:
        if unique:
            return _create_unique(path)
        check_free(path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_dir={path}: cannot make it ({error.strerror}).") from None
    return path


def _create_unique(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    name, number = path.name, 1
    while True:
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
            path = path.with_name(f"{name}-{number}")


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the run folder against a second process; freed when this one ends, however it ends.

    Raises:
        InputError: another process holds it; the message says which.
    """
    with open(path / "run.lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(f"{path}: this run is being worked on by {holder}.") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write the resolved configuration of the run to `config.yaml`."""
    _write(path / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def read_config(path: Path) -> dict[str, Any]:
    """The configuration a run was started with.

    Raises:
        InputError: the folder is not that of a run.
    """
    try:
        config = yaml.safe_load((path / "config.yaml").read_text())
    except OSError:
        raise InputError(f"{path} is not the folder of a run (no config.yaml).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}/config.yaml cannot be read: {reason}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}/config.yaml is not a configuration.")
    return config


def write_status(path: Path, state: str, step: int = 0, error: str | None = None) -> None:
    """Write `status.json`: state is one of STATES, step the last one finished."""
    status = {"state": state, "step": step} | ({"error": error} if error else {})
    _write(path / "status.json", json.dumps(status) + "\n")


def read_status(path: Path) -> dict[str, Any]:
    """What `status.json` says, or an empty dict where there is none."""
    try:
        return json.loads((path / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def _write(path: Path, text: str) -> None:
    """Replace a small file in one move, so that no reader sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
