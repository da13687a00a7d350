"""The file a training run is continued and sampled from: written whole or not at all.

A checkpoint is one `torch.save` of a dict of plain types and tensors, so that it loads with
`weights_only=True`: reading somebody's checkpoint runs none of their code.
"""

import errno
import io
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm.errors import InputError, causes, shown
from ddpm.runner.checkpoints import safetensors_file
from ddpm.runner.distributed.fsdp import share
from ddpm.runner.runs import stored_config
from ddpm.runner.safe_io import listing
from ddpm.runner.safe_io.atomic import free_bytes, replacing, sync, sync_folder
from ddpm.runner.safe_io.failpoint import crashpoint
from ddpm.runner.safe_io.plain import Refused
from ddpm.runner.safe_io.torch_archive import check_archive, read_archive

SCHEMA = 1  # raise it when the meaning of an entry changes
ENTRIES = ("step", "run_id", "hparams", "model", "ema", "optimizer")
# Entries that are there or not: diffusion (a schedule that learns), meter (what was measured since
# the last line of the log), scaler (of float16), data (the fingerprint of the images), made_with,
# chosen (what the run chose for itself: accumulate).
logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d+)\.pt")
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|module)(?=\.)")  # torch.compile's and DDP's


def save(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write `state` to `folder/step-0000500.pt` and then delete all but the newest `keep` files.

    The file appears under its name only when all its bytes are on the disk and were read back, so
    neither a kill nor a full disk can leave a broken one or take an older one away.

    Args:
        state: holds all ENTRIES; `step` names the file.
        keep: at least 2, or -1 for all.

    Raises:
        InputError: the disk is full or the folder cannot be written; older files are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state['step']:07d}.pt"
    try:
        with replacing(path) as (temporary,):
            _write(temporary, {"format": safetensors_file.FORMAT, "schema": SCHEMA, **state})
        crashpoint("checkpoint.renamed")
        sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError on ENOSPC
        raise InputError(_not_written(path, state, error)) from error
    crashpoint("checkpoint.kept")
    if keep >= 0:
        _delete_older(folder, state["step"], keep)
    return path


def _delete_older(folder: Path, step: int, keep: int) -> None:
    """Delete all but the newest `keep` of the checkpoints up to a step: newer ones were passed over
    as damaged when the run went on from an older one."""
    try:
        known = [old for old in list_checkpoints(folder) if _step_of(old) <= step]
    except listing.Unreachable as error:  # the new one is written: no reason to end the run
        logger.warning("%s Older checkpoints stay for now.", error)
        return
    for old in known[:-keep]:
        old.unlink(missing_ok=True)
        crashpoint("checkpoint.deleted")


class _File(io.BufferedWriter):
    """A file in the middle of whose bytes a test can let the process die."""

    def write(self, data: Any) -> int:
        crashpoint("checkpoint.writing")
        return super().write(data)


def _write(path: Path, state: dict[str, Any]) -> None:
    """Write a file, and see that its bytes are on the disk and are the right ones."""
    with _File(io.FileIO(path, "w")) as file:
        torch.save(state, file)
        file.flush()
        crashpoint("checkpoint.written")
        sync(file.fileno())
    crashpoint("checkpoint.synced")
    try:
        check_archive(path)
    except Refused as error:
        raise OSError(f"what was written cannot be read back: {error}") from error
    crashpoint("checkpoint.verified")


def _not_written(path: Path, state: dict[str, Any], error: Exception) -> str:
    """Why there is no new checkpoint, and which one there still is."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors(state)) / 1e6
    free = free_bytes(path.parent)
    full = "no space left on the disk, or in a quota" if _is_full(error) else str(error)
    room = "" if free is None else f", {free / 1e6:.1f} MB are free"
    reason = f"{full}; it needs {needed:.1f} MB{room}"
    try:
        others = list_checkpoints(path.parent)
        kept = f"The newest good one is {others[-1]}." if others else "There is no older one."
    except listing.Unreachable as unlistable:
        kept = str(unlistable)
    return f"{path}: the checkpoint could not be written ({reason}). {kept}"


def _is_full(error: BaseException) -> bool:
    """Whether it was for want of room; torch's writer says it in words of its own."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(
        getattr(cause, "errno", None) in full or "unexpected pos" in str(cause)
        for cause in causes(error)
    )


def tensors(node: Any) -> list[torch.Tensor]:
    """Every tensor in a state of dicts and lists."""
    if isinstance(node, torch.Tensor):
        return [node]
    inner = node.values() if isinstance(node, dict) else node
    if not isinstance(node, dict | list | tuple):
        return []
    return [t for value in inner for t in tensors(value)]


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder by step, oldest first; by name, for clocks and copies lie.

    Raises:
        Unreachable: the folder cannot be listed, so nobody knows.
    """
    return sorted((p for p in listing.paths(folder) if _NAME.fullmatch(p.name)), key=_step_of)


def _step_of(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def load(path: Path) -> dict[str, Any]:
    """Read one file to the CPU, with clean parameter names: a checkpoint, or a shared export.

    Raises:
        InputError: no such file, not a checkpoint of this program, damaged, or of a newer version.
    """
    if not path.is_file():
        raise InputError(f"checkpoint={path}: there is no such file.")
    if path.suffix == safetensors_file.SUFFIX:
        state, entries = safetensors_file.read(path), ()
    else:
        state, entries = _read(path), ENTRIES
    if missing := [entry for entry in entries if entry not in state]:
        raise InputError(f"checkpoint={path}: it lacks {', '.join(missing)}.")
    _check_entries(state, path)
    for weights in {"model", "ema"} & state.keys():
        state[weights] = {_WRAPPERS.sub(r"\1", k).lstrip("."): v for k, v in state[weights].items()}
    return state


def _read(path: Path) -> dict[str, Any]:
    """The dict that `save` wrote."""
    try:
        state = read_archive(path)
    except Refused as error:
        raise InputError(
            f"checkpoint={path}: not a whole checkpoint of this program ({error})."
        ) from None
    if not isinstance(state, dict) or state.get("format") != safetensors_file.FORMAT:
        raise InputError(f"checkpoint={path}: not a checkpoint of this program.")
    schema = state.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise InputError(
            f"checkpoint={path}: its format is version {shown(schema)}, newer than this "
            f"program's {SCHEMA}. Update the program."
        )
    return state


def _check_entries(state: dict[str, Any], path: Path) -> None:
    """Check the types of a checkpoint's entries; its configuration gets today's names."""
    wrong = [
        f"{name} is {shown(state[name])}"
        for name, right in {
            "step": lambda x: type(x) is int and 0 <= x < 2**53,
            "run_id": stored_config.is_word,
            "model": _is_weights,
            "ema": _is_weights,
            "diffusion": _is_weights,
            "optimizer": lambda x: isinstance(x, dict),
        }.items()
        if name in state and not right(state[name])
    ]
    try:
        state["hparams"] = stored_config.read(state["hparams"])
    except Refused as error:
        wrong.append(str(error))
    if wrong:
        raise InputError(f"checkpoint={path}: not a checkpoint of this program ({wrong[0]}).")


def _is_weights(node: Any) -> bool:
    return isinstance(node, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in node.items()
    )


def find(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint `path` stands for, and what is in it: a file, a run folder or its checkpoints.

    In a folder, the newest one that is whole: damaged ones are named and passed over.

    Raises:
        InputError: nothing there can be used.
    """
    path = Path(path)
    if not path.is_dir():
        return path, load(path)
    folder = path / "checkpoints" if listing.exists(path / "checkpoints") else path
    for candidate in reversed(list_checkpoints(folder)):
        try:
            return candidate, load(candidate)
        except InputError as error:
            print(f"Passed over: {error}")
    if (export := path / safetensors_file.NAME).is_file():
        return export, load(export)
    raise InputError(f"checkpoint={path}: the folder holds no whole checkpoint (step-*.pt).")


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Put weights into a network, also where that is shared out over several devices.

    Raises:
        InputError: see `check_weights`.
    """
    check_weights(model, weights, path)
    own = model.state_dict()
    model.load_state_dict({name: share(weight, own[name]) for name, weight in weights.items()})


def check_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """See that weights are those of a network, naming at most five that are not.

    Raises:
        InputError: a name is missing or too many, or a shape differs.
    """
    own = model.state_dict()
    wrong = [
        *(f"{k} is missing" for k in own if k not in weights),
        *(f"{shown(k)} is unknown" for k in weights if k not in own),
        *(
            f"{k} is {tuple(weights[k].shape)}, the model's {tuple(v.shape)}"
            for k, v in own.items()
            if k in weights and weights[k].shape != v.shape
        ),
        *(
            f"{k} is of {weights[k].dtype}"
            for k, v in own.items()
            if k in weights and weights[k].is_floating_point() != v.is_floating_point()
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"checkpoint={path}: the weights are of another network: {'; '.join(wrong[:5])}{more}."
        )
