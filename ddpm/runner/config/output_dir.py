"""Choose the folder of a run: that of the resumed run, output_dir, the sweep's, or a new one."""

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

WRITTEN = ("samples", "checkpoints", "tensorboard", "wandb")  # subfolders that a run writes


def choose(
    config: dict[str, Any], hparams: dict[str, Any], request: Request, base: BaseRun | None
) -> Output:
    """Choose the folder of a run without creating it.

    Args:
        hparams: of the run, to recognise an unfinished sampling run of the same images.
        base: the older run; a resumed run keeps its folder.

    Raises:
        InputError: output_dir is in use, or cannot be written.
    """
    if base is not None and base.resumed:
        return Output(run_folder(base.path), Mode.RESUME)
    kind, output_dir = config["kind"], config["output_dir"]
    if request.sweep_dir is not None and output_dir is None:
        folder = request.sweep_dir / request.subdir
        return Output(folder, Mode.SWEEP if kind != "converts" else Mode.NEW)  # an export is no run
    if request.sweep_dir is not None and kind == "trains":
        return Output(Path(output_dir), Mode.CHOSEN)
    if output_dir is None:
        return _new_folder(config, hparams)
    folder = Path(output_dir)
    if kind == "draws" and listing.exists(folder / "config.yaml"):
        return _same_run(folder, hparams)
    run_dir.check_free(folder)
    if kind == "draws" and listing.entries(folder / "samples"):
        raise InputError(
            f"output_dir={folder}: holds samples of an unknown run (no config.yaml), which new "
            "ones would be mixed with. Choose another folder."
        )
    return Output(folder, Mode.NEW)


def _new_folder(config: dict[str, Any], hparams: dict[str, Any]) -> Output:
    """A folder named by job, parts and time, or that of an unfinished sampling run like this."""
    choices = config["choices"]
    name = f"{choices['model']}-{choices['data']}"
    parent = Path("outputs") / file_name(choices["job"]) / file_name(name)
    if config["kind"] == "draws" and (unfinished := _unfinished(parent, hparams)):
        return unfinished
    run_dir.check_writable(parent)
    return Output(parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"), Mode.UNIQUE)


def check_same(output_dir: str | None, base: BaseRun) -> None:
    """Check that output_dir, if it is set, is the folder of the run that is resumed.

    Raises:
        InputError: it is another one.
    """
    folder = run_folder(base.path)
    if output_dir is not None and os.path.realpath(output_dir) != os.path.realpath(folder):
        initial = shell.word("init_from", base.path)
        raise InputError(
            f"{shell.word('output_dir', output_dir)}: a resumed run stays in its folder, {folder}. "
            f"Leave out output_dir, or begin another run with its weights: {initial} instead of "
            "resume."
        )


def check_apart(folder: Path, config: dict[str, Any], base: BaseRun | None) -> None:
    """Check that a run writes no pictures into its own data set. A run folder below data.root is
    allowed: the data set skips it.

    Raises:
        InputError: the previews would become images of the data set.
    """
    root = get_path(config, "data.root")
    if not isinstance(root, str):
        return
    own, images = (Path(os.path.realpath(path)) for path in (folder, root))
    if images == own or any(images.is_relative_to(own / name) for name in WRITTEN):
        override = shell.word("output_dir", folder)
        remedy = "Choose another output_dir; it may be inside data.root."
        if base is not None and base.resumed:
            override = shell.word("resume", base.path)
            remedy = "Move the images to a folder of their own and set data.root=<that folder>."
        raise InputError(
            f"{override}: the run would write its pictures into {shell.word('data.root', root)}, "
            f"among the images of the data set.\n{remedy}"
        )


def _same_run(folder: Path, hparams: dict[str, Any]) -> Output:
    """Resume the sampling run in a folder.

    Raises:
        InputError: it draws other images.
    """
    stored = run_dir.read_config(folder)
    if different := differences(stored, hparams):
        raise InputError(
            f"output_dir={folder}: the folder holds another run ({', '.join(different[:3])}). "
            "Choose another folder."
        )
    return Output(folder, Mode.RESUME, stored["run_id"])


def _unfinished(parent: Path, hparams: dict[str, Any]) -> Output | None:
    """The newest unfinished run with the same configuration, if any."""
    # `run_dir.create` uses names with a leading dot for folders that are not complete.
    visible = (path for path in listing.paths(parent) if not path.name.startswith("."))
    for folder in sorted(visible, reverse=True):
        if run_dir.read_status(folder).get("state") == "done" or run_dir.is_locked(folder):
            continue
        try:
            return _same_run(folder, hparams)
        except InputError:
            continue
    return None
