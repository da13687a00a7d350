"""Pictures in a run's folder: the previews of a training run, `samples/step-000500.png`, and those
that a sampling job has drawn, named after their seeds in the same folder."""

import re
from pathlib import Path

from ddpm.runner.safe_io import listing

FOLDER = "samples"
_NAME = re.compile(r"step-(\d{1,12})\.png")


def file(run_dir: Path, step: int, name: str = FOLDER) -> Path:
    """The file of the preview at a step.

    Args:
        name: of the image; previews are named like their folder.
    """
    return run_dir / name / f"step-{step:06d}.png"


def by_step(run_dir: Path, name: str = FOLDER) -> dict[int, Path]:
    """The existing files of `file`, in the order of the steps.

    Raises:
        Unreachable: the folder cannot be listed.
    """
    names = [entry.name for entry in listing.entries(run_dir / name)]
    matches = [match for match in map(_NAME.fullmatch, names) if match]
    return dict(sorted((int(match[1]), run_dir / name / match[0]) for match in matches))


def drawn(run_dir: Path) -> list[Path]:
    """All PNG files of `samples/`, sorted by name.

    Raises:
        Unreachable: the folder cannot be listed.
    """
    return listing.paths(run_dir / FOLDER, "*.png")
