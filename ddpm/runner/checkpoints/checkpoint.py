"""Checkpoints of training runs, written whole or not at all.

A checkpoint is one `torch.save` of a dict of plain types and tensors. It loads with
`weights_only=True`: reading an untrusted checkpoint executes no code.
"""

import io
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm.errors import InputError, causes, shown
from ddpm.runner.checkpoints import diffusers_folder, safetensors_file, summary
from ddpm.runner.checkpoints.summary import list_checkpoints
from ddpm.runner.distributed.fsdp import distribute
from ddpm.runner.safe_io import listing
from ddpm.runner.safe_io.atomic import FULL, free_bytes, replacing, sync, sync_folder
from ddpm.runner.safe_io.failpoint import crashpoint
from ddpm.runner.safe_io.plain import Refused
from ddpm.runner.safe_io.torch_archive import check_archive, read_archive

ENTRIES = ("step", "run_id", "hparams", "model", "ema", "optimizer")
# Optional entries: averages (by length: those beside ema, which is the first), diffusion (of a
# learned schedule), meter (measurements since the last log line), best (training.best), scaler (of
# float16), data (fingerprint of the images), made_with, chosen (values that the run chose for
# "auto").
logger = logging.getLogger(__name__)

_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|module)(?=\.)")  # torch.compile's and DDP's


def save(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write `state` to `folder/step-0000500.pt`, then delete all but the newest `keep` files.

    The file gets its name only after its bytes were flushed to the disk and verified, so neither a
    kill nor a full disk leaves a damaged file or removes an older one.

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
            _write(temporary, {"format": summary.FORMAT, "schema": summary.SCHEMA, **state})
        crashpoint("checkpoint.renamed")
        sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError on ENOSPC
        raise InputError(_not_written(path, state, error)) from error
    crashpoint("checkpoint.kept")
    if keep >= 0:
        _delete_older(folder, state["step"], keep)
    return path


def keep_best(path: Path) -> None:
    """Give a checkpoint the second name `best.pt`, under which it stays when older ones are
    deleted; a copy, where the file system has no links. A failure is a warning."""
    try:
        with replacing(path.with_name(summary.BEST)) as (temporary,):
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
    except OSError as error:
        logger.warning("%s is the best checkpoint, but %s: %s", path, summary.BEST, error)


def _delete_older(folder: Path, step: int, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints up to a step. Newer ones are damaged: they were
    passed over when the run was resumed from an older one."""
    try:
        known = [old for old in list_checkpoints(folder) if summary.step_of(old) <= step]
    except listing.Unreachable as error:  # the new one is written: the run can continue
        logger.warning("%s Older checkpoints stay for now.", error)
        return
    for old in known[:-keep]:
        old.unlink(missing_ok=True)
        crashpoint("checkpoint.deleted")


class _File(io.BufferedWriter):
    """A file during whose writes tests can kill the process."""

    def write(self, data: Any) -> int:
        crashpoint("checkpoint.writing")
        return super().write(data)


def _write(path: Path, state: dict[str, Any]) -> None:
    """Write a file, flush it to the disk and verify it."""
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
    """Message: why there is no new checkpoint, and which is the newest older one."""
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
    """Whether the disk was full; torch's zip writer reports that in its own words."""
    return any(
        getattr(cause, "errno", None) in FULL or "unexpected pos" in str(cause)
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


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint or an export to the CPU, with clean parameter names.

    Raises:
        InputError: no such file, not a checkpoint of this program, damaged, or of a newer version.
    """
    if not path.is_file():
        raise InputError(f"checkpoint={path}: there is no such file.")
    if path.suffix == safetensors_file.SUFFIX:
        state = safetensors_file.read(path)
    elif path.name == summary.PIPELINE:
        state = diffusers_folder.read(path)
    else:
        state = _read(path)
        if missing := [entry for entry in ENTRIES if entry not in state]:
            raise InputError(f"checkpoint={path}: it lacks {', '.join(missing)}.")
    _check_entries(state, path)
    for weights in {"model", "ema"} & state.keys():
        state[weights] = _unwrapped(state[weights])
    if "averages" in state:
        state["averages"] = {name: _unwrapped(w) for name, w in state["averages"].items()}
    return state


def _unwrapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by the names that the network itself has for them."""
    return {_WRAPPERS.sub(r"\1", name).lstrip("."): weight for name, weight in weights.items()}


def _read(path: Path) -> dict[str, Any]:
    """The dict in a checkpoint."""
    try:
        state = read_archive(path)
    except Refused as error:
        raise InputError(summary.not_whole(path, error)) from None
    summary.check_format(state, path)
    return state


def _check_entries(state: dict[str, Any], path: Path) -> None:
    """Check the types of a checkpoint's entries; its configuration gets today's names."""
    summary.check_head(state, path)
    tests = {"model": _is_weights, "ema": _is_weights, "diffusion": _is_weights}
    tests["optimizer"] = lambda node: isinstance(node, dict)
    tests["averages"] = _are_averages
    for name in tests.keys() & state.keys():
        if not tests[name](state[name]):
            problem = f"{name} is {shown(state[name])}"
            raise InputError(f"checkpoint={path}: not a checkpoint of this program ({problem}).")


def _is_weights(node: Any) -> bool:
    return isinstance(node, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in node.items()
    )


def _are_averages(node: Any) -> bool:
    return isinstance(node, dict) and all(
        isinstance(name, str) and re.fullmatch(summary.LENGTH, name) and _is_weights(weights)
        for name, weights in node.items()
    )


def find(path: str | Path, planned: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that `path` names, and its content: a file, a run folder or its checkpoints,
    or `<run folder>:best`.

    In a folder, the newest one that is whole: damaged ones are named and passed over.

    Args:
        planned: the file that planning chose in the folder; newer ones are not considered.

    Raises:
        InputError: there is no whole checkpoint.
    """
    return summary.newest_whole(summary.named(path), lambda file: (file, load(file)), planned)


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Load weights into a network, which may be sharded.

    Raises:
        InputError: see `check_weights`.
    """
    check_weights(model, weights, path)
    own = model.state_dict()
    model.load_state_dict({name: distribute(weight, own[name]) for name, weight in weights.items()})


def check_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Check names, shapes and types of weights against a network.

    Raises:
        InputError: names at most five weights that differ.
    """
    if wrong := list(misfits(model.state_dict(), weights).values()):
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"checkpoint={path}: the weights are of another network: {'; '.join(wrong[:5])}{more}."
        )


def misfits(network: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> dict[str, str]:
    """Why weights do not fit a network of these weights, by the names of those that do not."""
    names = dict.fromkeys([*network, *weights])
    return {name: problem for name in names if (problem := _misfit(name, network, weights))}


def _misfit(
    name: str, network: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]
) -> str | None:
    if name not in weights:
        return f"{name} is missing"
    if name not in network:
        return f"{shown(name)} is unknown"
    ours, theirs = network[name], weights[name]
    if ours.shape != theirs.shape:
        return f"{name} is {tuple(theirs.shape)}, the network's {tuple(ours.shape)}"
    if ours.is_floating_point() != theirs.is_floating_point():
        return f"{name} is of {theirs.dtype}"
    return None
