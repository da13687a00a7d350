"""Which folder a run gets: the one it goes on in, the given one, the sweep's, or a new one."""

import os
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.errors import InputError
from ddpm.runner.config.merge import SAMPLING, TRAINING, differences, run_folder
from ddpm.runner.config.paths import file_name
from ddpm.runner.config.rules import look_up
from ddpm.runner.runs import run_dir
from ddpm.runner.safe_io import listing
from ddpm.runner.terminal import shell

WRITTEN = ("samples", "checkpoints", "tensorboard", "wandb")  # folders in that of a run


class Place(NamedTuple):
    """A folder, whether it may get another name, and, if a run has begun in it, that run's id.

    A sweep looks for the folders of its jobs itself, `in_sweep`, or at those that are `chosen`.
    """

    folder: Path
    in_sweep: bool = False
    chosen: bool = False
    unique: bool = False
    begun: bool = False
    run_id: str | None = None


def choose(
    config: dict[str, Any],
    hparams: dict[str, Any],
    name: str,
    sweep: Path | None,
    resume: str | None,
) -> Place:
    """Find the folder without making it.

    Args:
        hparams: of the run, to know a sampling run by that was stopped.
        name: of its parts, for a new folder.
        sweep: the job's folder in a sweep.
        resume: the run to go on with.

    Raises:
        InputError: the given folder is not free, or not to be had.
    """
    if resume is not None:
        return Place(run_folder(resume), begun=True)
    job, given = config["choices"]["job"], config["output_dir"]
    if given is None and sweep is not None:
        return Place(sweep, in_sweep=job != "export")  # which leaves no run
    if sweep is not None and job in TRAINING:
        return Place(Path(given), chosen=True)
    if given is None:
        parent = Path("outputs") / file_name(job) / file_name(name)
        begun = _unfinished(parent, hparams) if job in SAMPLING else None
        now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        if begun is None:
            run_dir.check_writable(parent)
        return begun or Place(parent / now, unique=True)
    folder = Path(given)
    if job in SAMPLING and listing.exists(folder / "config.yaml"):
        return _same_run(folder, hparams)
    run_dir.check_free(folder)
    if job in SAMPLING and listing.entries(folder / "samples"):
        raise InputError(
            f"output_dir={folder}: its samples are of an unknown run (no config.yaml); they would "
            "mix. Choose another folder."
        )
    return Place(folder)


def check_apart(folder: Path, config: dict[str, Any], resume: str | None) -> None:
    """See that a run does not write where its images are read from. Where its folder lies below
    those images, the data set leaves it out.

    Raises:
        InputError: its previews would become images of the data set.
    """
    root = look_up(config, "data.root")
    if not isinstance(root, str):
        return
    own, images = (Path(os.path.realpath(path)) for path in (folder, root))
    if images == own or any(images.is_relative_to(own / name) for name in WRITTEN):
        given = shell.word("resume" if resume else "output_dir", resume or folder)
        cure = "Choose another output_dir; it may lie within data.root."
        if resume is not None:
            cure = "Move the images to a folder of their own and say data.root=<that folder>."
        raise InputError(
            f"{given}: the run writes its own pictures into {shell.word('data.root', root)}, among "
            f"the images of the data set.\n{cure}"
        )


def _same_run(folder: Path, hparams: dict[str, Any]) -> Place:
    """A folder whose run is to go on, for its images are those that are wanted.

    Raises:
        InputError: they are others.
    """
    there = run_dir.read_config(folder)
    if different := differences(there, hparams):
        raise InputError(
            f"output_dir={folder}: the folder holds another run ({', '.join(different[:3])}). "
            "Choose another folder."
        )
    return Place(folder, begun=True, run_id=there["run_id"])


def _unfinished(parent: Path, hparams: dict[str, Any]) -> Place | None:
    """The newest run of the same configuration that was stopped before its end, if any."""
    named = (p for p in listing.paths(parent) if not p.name.startswith("."))  # as `create` does
    for folder in sorted(named, reverse=True):
        if run_dir.read_status(folder).get("state") == "done" or run_dir.is_locked(folder):
            continue
        try:
            return _same_run(folder, hparams)
        except InputError:
            continue
    return None
