"""Which folder a run gets: the one it goes on in, the given one, the sweep's, or a new one."""

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from ddpm.errors import InputError
from ddpm.runner.config.base_run import BaseRun, run_folder
from ddpm.runner.config.merge import differences
from ddpm.runner.config.paths import file_name
from ddpm.runner.config.plan import Mode, Output
from ddpm.runner.config.request import Request
from ddpm.runner.runs import run_dir
from ddpm.runner.safe_io import listing
from ddpm.runner.safe_io.tree import get_path
from ddpm.runner.terminal import shell

WRITTEN = ("samples", "checkpoints", "tensorboard", "wandb")  # folders in that of a run


def choose(
    config: dict[str, Any], hparams: dict[str, Any], request: Request, base: BaseRun | None
) -> Output:
    """Find the folder of a run without making it.

    Args:
        hparams: of the run, to recognise a sampling run that was stopped.
        base: the older run, which keeps its folder if it is resumed.

    Raises:
        InputError: the given folder is not free, or cannot be written.
    """
    if base is not None and base.resumed:
        return Output(run_folder(base.path), Mode.RESUME)
    kind, given = config["kind"], config["output_dir"]
    if request.sweep_dir is not None and given is None:
        folder = request.sweep_dir / request.subdir
        return Output(folder, Mode.SWEEP if kind != "converts" else Mode.NEW)  # an export is no run
    if request.sweep_dir is not None and kind == "trains":
        return Output(Path(given), Mode.CHOSEN)
    if given is None:
        return _new_folder(config, hparams)
    folder = Path(given)
    if kind == "draws" and listing.exists(folder / "config.yaml"):
        return _same_run(folder, hparams)
    run_dir.check_free(folder)
    if kind == "draws" and listing.entries(folder / "samples"):
        raise InputError(
            f"output_dir={folder}: its samples are of an unknown run (no config.yaml); they would "
            "mix. Choose another folder."
        )
    return Output(folder, Mode.NEW)


def _new_folder(config: dict[str, Any], hparams: dict[str, Any]) -> Output:
    """A folder named by job, parts and time; or that of an equal sampling run that was stopped."""
    choices = config["choices"]
    name = f"{choices['model']}-{choices['data']}"
    parent = Path("outputs") / file_name(choices["job"]) / file_name(name)
    if config["kind"] == "draws" and (begun := _unfinished(parent, hparams)):
        return begun
    run_dir.check_writable(parent)
    return Output(parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"), Mode.UNIQUE)


def check_apart(folder: Path, config: dict[str, Any], base: BaseRun | None) -> None:
    """See that a run does not write where its images are read from. Where its folder lies below
    those images, the data set leaves it out.

    Raises:
        InputError: its previews would become images of the data set.
    """
    root = get_path(config, "data.root")
    if not isinstance(root, str):
        return
    own, images = (Path(os.path.realpath(path)) for path in (folder, root))
    if images == own or any(images.is_relative_to(own / name) for name in WRITTEN):
        resumed = base is not None and base.resumed
        given = shell.word("output_dir", folder)
        if base is not None and resumed:
            given = shell.word("resume", base.path)
        cure = "Choose another output_dir; it may lie within data.root."
        if resumed:
            cure = "Move the images to a folder of their own and say data.root=<that folder>."
        raise InputError(
            f"{given}: the run writes its own pictures into {shell.word('data.root', root)}, among "
            f"the images of the data set.\n{cure}"
        )


def _same_run(folder: Path, hparams: dict[str, Any]) -> Output:
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
    return Output(folder, Mode.RESUME, there["run_id"])


def _unfinished(parent: Path, hparams: dict[str, Any]) -> Output | None:
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
