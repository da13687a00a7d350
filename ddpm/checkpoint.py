"""The file a training run is continued and sampled from: written whole or not at all.

A checkpoint is one `torch.save` of a dict of plain types and tensors, so that it loads with
`weights_only=True`: reading somebody's checkpoint runs none of their code.
"""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm.errors import InputError

SCHEMA = 1  # raise it when the meaning of an entry changes
ENTRIES = ("step", "run_id", "hparams", "model", "ema", "optimizer")
_NAME = re.compile(r"step-(\d+)\.pt")
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|module)(?=\.)")  # torch.compile's and DDP's


def save(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write `state` to `folder/step-0000500.pt` and then delete all but the newest `keep` files.

    The file appears under its name only when all its bytes are on the disk, so neither a kill nor
    a full disk can leave a broken one or take an older one away.

    Args:
        state: holds all ENTRIES; `step` names the file.
        keep: at least 2, or -1 for all.

    Raises:
        InputError: the disk is full or the folder cannot be written; older files are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state['step']:07d}.pt"
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": "hydra-ddpm", "schema": SCHEMA, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        if (bad := damage(temporary)) is not None:
            raise OSError(f"what was written cannot be read back: {bad}")
        os.replace(temporary, path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError on ENOSPC
        others = list_checkpoints(folder)
        kept = f"The newest good one is {others[-1]}." if others else "There is no older one."
        raise InputError(
            f"{path}: the checkpoint could not be written ({error}). {kept}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    if keep >= 0:
        for old in list_checkpoints(folder)[:-keep]:
            old.unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder by step, oldest first; by name, for clocks and copies lie."""
    found = [(int(m[1]), p) for p in folder.glob("step-*.pt") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def damage(path: Path) -> str | None:
    """What is wrong with the bytes of a file `torch.save` wrote, or None: torch checks no CRC."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
        return None if member is None else f"the checksum of {member} is wrong"
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return str(error)


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint file to the CPU, with clean parameter names.

    Raises:
        InputError: no such file, not a checkpoint of this program, damaged, or of a newer version.
    """
    if not path.is_file():
        raise InputError(f"checkpoint={path}: there is no such file.")
    if (bad := damage(path)) is not None:
        raise InputError(f"checkpoint={path}: not a whole checkpoint of this program ({bad}).")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler meets in a file that is not ours
        raise InputError(f"checkpoint={path}: not a checkpoint of this program.") from error
    if not isinstance(state, dict) or state.get("format") != "hydra-ddpm":
        raise InputError(f"checkpoint={path}: not a checkpoint of this program.")
    if state["schema"] > SCHEMA:
        raise InputError(
            f"checkpoint={path}: its format is version {state['schema']}, newer than this "
            f"program's {SCHEMA}. Update the program."
        )
    if missing := [entry for entry in ENTRIES if entry not in state]:
        raise InputError(f"checkpoint={path}: it lacks {', '.join(missing)}.")
    for weights in ("model", "ema"):
        state[weights] = {_WRAPPERS.sub(r"\1", k).lstrip("."): v for k, v in state[weights].items()}
    return state


def find(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint `path` stands for, and what is in it: a file, a run folder or its checkpoints.

    In a folder, the newest one that is whole: damaged ones are named and passed over.

    Raises:
        InputError: nothing there can be used.
    """
    path = Path(path)
    if not path.is_dir():
        return path, load(path)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    for candidate in reversed(list_checkpoints(folder)):
        try:
            return candidate, load(candidate)
        except InputError as error:
            print(f"Passed over: {error}")
    raise InputError(f"checkpoint={path}: the folder holds no whole checkpoint (step-*.pt).")


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Put weights into a network, naming at most five that do not fit.

    Raises:
        InputError: a name is missing or too many, or a shape differs.
    """
    own = model.state_dict()
    wrong = [
        *(f"{k} is missing" for k in own if k not in weights),
        *(f"{k} is unknown" for k in weights if k not in own),
        *(
            f"{k} is {tuple(weights[k].shape)}, the model's {tuple(v.shape)}"
            for k, v in own.items()
            if k in weights and weights[k].shape != v.shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"checkpoint={path}: the weights are of another network: {'; '.join(wrong[:5])}{more}."
        )
    model.load_state_dict(weights)


def _sync_folder(folder: Path) -> None:
    """Put the folder's entries on the disk: without it a power cut can undo the rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
