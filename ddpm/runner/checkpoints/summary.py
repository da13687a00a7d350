"""The checkpoints of a folder, and their configurations: read without torch and without tensors."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ddpm.errors import InputError, shown
from ddpm.runner.runs import find, stored_config
from ddpm.runner.safe_io import listing
from ddpm.runner.safe_io.plain import Refused
from ddpm.runner.safe_io.torch_archive import read_plain

FORMAT = "hydra-ddpm"  # in every checkpoint and export
SCHEMA = 1  # of checkpoints; raise it when the meaning of an entry changes
BEST = "best.pt"  # a second name of the checkpoint with the best figure
EXPORT = "model.safetensors"  # the name of an export in its folder
PIPELINE = "model_index.json"  # the first file of a pipeline of diffusers, in its folder
LENGTH = r"[0-9]+(\.[0-9]+)?(e-?[0-9]+)?"  # of an average, as in its name ema:0.05
_NAME = re.compile(r"step-(\d+)\.pt")

T = TypeVar("T")


class Summary(NamedTuple):
    """A checkpoint without its tensors."""

    file: Path
    step: int
    run_id: str
    hparams: dict[str, Any]


def read(path: Path) -> Summary:
    """The summary of the checkpoint that `path` names: a file, a run folder or its checkpoints.

    In a folder, the newest one whose structure is whole. The checksums of tensors are checked when
    they are loaded.

    Raises:
        InputError: there is no such checkpoint.
    """
    return newest_whole(path, _read_file)


def newest_whole(path: Path, read: Callable[[Path], T], planned: Path | None = None) -> T:
    """Read the first of the `candidates` that is whole; damaged ones are named and passed over.

    Args:
        read: raises InputError for a damaged file.

    Raises:
        InputError: none is whole.
    """
    for file in candidates(path, planned):
        try:
            return read(file)
        except InputError as error:
            if file == path or file.name == PIPELINE:  # the last one
                raise
            print(f"Passed over: {error}")
    raise InputError(
        f"checkpoint={path}: the folder holds no whole checkpoint (step-*.pt).{newest_inside(path)}"
    )


def newest_inside(folder: Path) -> str:
    """A sentence that names the newest training run below a folder which is no run itself."""
    newest = find.newest_training(folder)
    if newest is None or newest == folder:
        return ""
    return f" The newest training run in it: {newest}"


def named(source: str | Path) -> Path:
    """The path that a text names; `<run folder>:best` is the run's best checkpoint."""
    path = Path(os.path.expanduser(source))
    if path.name.endswith(":best") and not path.exists():
        return path.with_name(path.name.removesuffix(":best")) / "checkpoints" / BEST
    return path


def candidates(path: Path, planned: Path | None = None) -> Iterator[Path]:
    """The files that a path may stand for, the newest first, then an export, then a pipeline.

    Args:
        planned: the file that planning chose in the folder; newer ones are left out.

    Raises:
        Unreachable: a folder cannot be listed.
    """
    if not path.is_dir():
        yield path
        return
    folder = path / "checkpoints" if listing.exists(path / "checkpoints") else path
    last = step_of(planned) if planned is not None and _NAME.fullmatch(planned.name) else None
    for file in reversed(list_checkpoints(folder)):
        if last is None or step_of(file) <= last:
            yield file
    for name in (EXPORT, PIPELINE):
        if (path / name).is_file():
            yield path / name


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder by step, oldest first. Names count, not times: copies and clocks
    change those.

    Raises:
        Unreachable: the folder cannot be listed.
    """
    return sorted((p for p in listing.paths(folder) if _NAME.fullmatch(p.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def not_whole(path: Path, error: Exception) -> str:
    return f"checkpoint={path}: not a whole checkpoint of this program ({error})."


def check_format(state: Any, path: Path) -> None:
    """Check that a checkpoint was written by this program, in a version that it can read.

    Raises:
        InputError: it was not.
    """
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"checkpoint={path}: not a checkpoint of this program.")
    schema = state.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise InputError(
            f"checkpoint={path}: its format is version {shown(schema)}, newer than this "
            f"program's {SCHEMA}. Update the program."
        )


def check_head(state: dict[str, Any], path: Path) -> None:
    """Check step, run and configuration of a checkpoint; the latter gets today's names.

    Raises:
        InputError: one of them is missing or of another type.
    """
    if missing := [name for name in ("step", "run_id", "hparams") if name not in state]:
        raise InputError(f"checkpoint={path}: it lacks {', '.join(missing)}.")
    step, run_id = state["step"], state["run_id"]
    try:
        if type(step) is not int or not 0 <= step < 2**53:
            raise Refused(f"step is {shown(step)}")
        if not stored_config.is_word(run_id):
            raise Refused(f"run_id is {shown(run_id)}")
        state["hparams"] = stored_config.read(state["hparams"])
    except Refused as error:
        raise InputError(
            f"checkpoint={path}: not a checkpoint of this program ({error})."
        ) from None


def _read_file(path: Path) -> Summary:
    if not path.is_file():
        raise InputError(f"checkpoint={path}: there is no such file.")
    if path.suffix == ".safetensors":
        from ddpm.runner.checkpoints import safetensors_file  # imports this module

        return Summary(path, *safetensors_file.read_head(path))
    if path.name == PIPELINE:
        from ddpm.runner.checkpoints import diffusers_folder  # likewise

        return Summary(path, *diffusers_folder.read_head(path))
    try:
        state = read_plain(path)
    except Refused as error:
        raise InputError(not_whole(path, error)) from None
    check_format(state, path)
    check_head(state, path)
    return Summary(path, state["step"], state["run_id"], state["hparams"])
