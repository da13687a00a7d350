"""What a run that is done gives to its trackers: its last checkpoint, and what it drew."""

import logging
from pathlib import Path

from ddpm.runner.checkpoints.checkpoint import list_checkpoints
from ddpm.runner.safe_io import listing
from ddpm.trackers.base import grid_files
from ddpm.trackers.multi import Trackers

logger = logging.getLogger(__name__)

PICTURES = 1000  # single ones, at most; of larger lots the grid alone is shown around
BESIDE = ("grid.png", "strip.png", "denoising.gif", "labels.json")


def offer(tracker: Trackers, folder: Path, step: int, *, trains: bool) -> None:
    """Name the files that are on the disk; a tracker takes what it wants."""
    try:
        checkpoints = list_checkpoints(folder / "checkpoints") if trains else []
        samples = drawn(folder, trains=trains)
    except listing.Unreachable as error:  # the run itself is done
        logger.warning("The trackers get no files: %s", error)
        return
    if checkpoints:
        tracker.log_files("model", step, checkpoints[-1:], final=True)
    tracker.log_files("samples", step, samples, final=True)


def drawn(folder: Path, *, trains: bool) -> list[Path]:
    """The last preview of a training run; the pictures of another and what stands beside them."""
    if trains:
        previews = grid_files(folder, "samples")
        return [previews[max(previews)]] if previews else []
    pictures = listing.paths(folder / "samples", "*.png")
    beside = [folder / name for name in BESIDE if (folder / name).is_file()]
    return [*(pictures if len(pictures) <= PICTURES else []), *beside]
