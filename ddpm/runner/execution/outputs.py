"""Offer the files of a finished run to its trackers: the last checkpoint, and the pictures."""

import contextlib
import logging
from pathlib import Path

from ddpm.errors import InputError
from ddpm.runner.checkpoints import summary
from ddpm.runner.checkpoints.checkpoint import list_checkpoints
from ddpm.runner.runs import previews
from ddpm.runner.safe_io import listing
from ddpm.trackers.multi import Trackers

logger = logging.getLogger(__name__)

PICTURES = 1000  # if there are more single pictures, only the grid is offered
BESIDE = ("grid.png", "strip.png", "denoising.gif", "labels.json")


def offer(tracker: Trackers, folder: Path, step: int, *, trains: bool) -> None:
    """Pass the files on the disk to the trackers, each of which decides what to upload."""
    try:
        checkpoints = list_checkpoints(folder / "checkpoints") if trains else []
        samples = drawn(folder, trains=trains)
    except listing.Unreachable as error:  # the run itself succeeded
        logger.warning("The trackers get no files: %s", error)
        return
    if checkpoints:
        best = folder / "checkpoints" / summary.BEST
        if best.is_file() and not best.samefile(checkpoints[-1]):
            with contextlib.suppress(InputError):  # damaged
                tracker.log_files("model", summary.read(best).step, [best], final=True)
        tracker.log_files("model", step, checkpoints[-1:], final=True)
    tracker.log_files("samples", step, samples, final=True)


def drawn(folder: Path, *, trains: bool) -> list[Path]:
    """The last preview of a training run, or all pictures of a sampling run with their grid."""
    if trains:
        return [*previews.by_step(folder).values()][-1:]
    pictures = previews.drawn(folder)
    beside = [folder / name for name in BESIDE if (folder / name).is_file()]
    return [*(pictures if len(pictures) <= PICTURES else []), *beside]
