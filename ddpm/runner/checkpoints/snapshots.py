"""Snapshots of averaged weights in a run's folder: averages of other lengths are made of them.

`snapshots/step-0000500.pt` holds the averages by length, in float16. Unlike checkpoints, all stay.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.errors import InputError, shown
from ddpm.runner.checkpoints import checkpoint, summary
from ddpm.runner.safe_io import listing
from ddpm.runner.safe_io.plain import Refused
from ddpm.runner.safe_io.torch_archive import read_archive, read_plain

FOLDER = "snapshots"

logger = logging.getLogger(__name__)


class Snapshot(NamedTuple):
    """A snapshot whose tensors were not read yet."""

    file: Path
    step: int
    lengths: list[str]


def save(folder: Path, step: int, run_id: str, averages: dict[str, Any]) -> Path:
    """Write the averages of a step, `{length: weights}`, into a run's folder.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    state = {"step": step, "run_id": run_id, "averages": averages}
    return checkpoint.save(folder / FOLDER, state, keep=-1)


def forget_after(folder: Path, step: int) -> None:
    """Delete the snapshots of later steps: the resumed run takes these steps again, perhaps with
    other settings."""
    if listing.exists(folder / FOLDER):
        for file in summary.list_checkpoints(folder / FOLDER):
            if summary.step_of(file) > step:
                file.unlink(missing_ok=True)


def beside(file: Path, run_id: str, before: int) -> Iterator[Snapshot]:
    """The snapshots in the run's folder that a checkpoint is in, of that run and of earlier steps;
    damaged ones are left out with a warning."""
    folder = file.absolute().parent.parent / FOLDER
    if file.suffix != ".pt" or not listing.exists(folder):
        return
    for path in summary.list_checkpoints(folder):
        if summary.step_of(path) >= before:
            continue
        try:
            state = _checked(read_plain(path), path)
        except (InputError, Refused, OSError) as error:
            logger.warning("%s: left out (%s).", path, shown(error, 200))
            continue
        if state["run_id"] == run_id and state["step"] == summary.step_of(path):
            yield Snapshot(path, state["step"], list(state["averages"]))


def read(file: Path) -> dict[str, dict[str, Any]]:
    """The averages in a snapshot, `{length: weights}`, on the CPU.

    Raises:
        InputError: it is damaged.
    """
    try:
        return _checked(read_archive(file), file)["averages"]
    except (Refused, OSError) as error:
        raise InputError(f"{file}: not a whole snapshot ({shown(error, 200)}).") from None


def _checked(state: Any, path: Path) -> dict[str, Any]:
    summary.check_format(state, path)
    averages = state.get("averages")
    if (
        not isinstance(averages, dict)
        or not averages
        or not all(isinstance(k, str) and isinstance(v, dict) for k, v in averages.items())
        or type(state.get("step")) is not int
    ):
        raise InputError(f"{path}: not a snapshot of this program.")
    return state
