"""Weights to share: `model.safetensors`, read by any program that knows the format.

The tensors are those of a network and of a learned schedule. All metadata stand as JSON under one
key: the library writes several keys in random order, and equal exports should be equal files. A
SHA-256 checksum of the whole file, taken with zeros in its place, stands in the metadata. Exports
of schema 1, which had a key for each entry, are read, too. `config.json` beside the file repeats
the metadata for readers. Reading the configuration alone needs no torch.
"""

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import safe_open

from ddpm.errors import InputError, one_line, shown
from ddpm.runner import roles
from ddpm.runner.checkpoints.summary import EXPORT, FORMAT, LENGTH
from ddpm.runner.runs import stored_config
from ddpm.runner.safe_io import atomic
from ddpm.runner.safe_io.plain import Refused, regular_size
from ddpm.runner.safe_io.yaml_json import MAX_YAML, read_json

if TYPE_CHECKING:
    from torch import Tensor

NAME, SUFFIX, CONFIG = EXPORT, ".safetensors", "config.json"
SCHEMA = 2  # raise it when the meaning of an entry changes
ENTRIES = ("schema", "step", "run_id", "weights", "hparams", "sha256")
PARTS = (*roles.PROCESS, *roles.DRAWING)
AVERAGE = f"ema:{LENGTH}"
NETWORK, DIFFUSION = "network.", "diffusion."  # prefixes of the tensors' names
DTYPES = ("float64", "int64", "float32", "int32", "float16", "bfloat16", "uint8", "bool")

# Bytes. JSON within JSON takes up to four times as many as the YAML that a run writes: \\\" for ".
MAX_CONFIGURATION = 4 * MAX_YAML
MAX_HEADER = 2 * MAX_CONFIGURATION  # with the tensors, of which one takes some 100
MAX_DIMENSIONS = 16
_NO_DIGEST = "0" * 64  # stands in the place of the checksum while that is taken


def shared(hparams: dict[str, Any]) -> dict[str, Any]:
    """The part of a run's configuration that is needed to sample from its weights.

    Absolute paths become null, and classifier guidance is left out, since it needs a second file.
    """
    parts = {part: _without_paths(hparams[part]) for part in PARTS if part in hparams}
    choices = {k: v for k, v in hparams["choices"].items() if k in (*PARTS, "job")}
    parts["data"] = {key: value for key, value in parts["data"].items() if key != "data_dir"}
    for key in ("root", "path", "shards"):
        if key in parts["data"] and (key == "root" or isinstance(parts["data"][key], list)):
            parts["data"][key] = None
    if "classifier" in parts.get("guidance", {}):
        del parts["guidance"]
        choices["guidance"] = "none"
    others = {key: hparams[key] for key in ("version", "seed", "kind") if key in hparams}
    return others | parts | {"choices": choices}


def _without_paths(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_paths(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_paths(value) for value in node]
    absolute = isinstance(node, str) and re.match(r"[/~\\]|[A-Za-z]:[/\\]|file:", node)
    return None if absolute else node


def write(folder: Path, state: dict[str, Any], weights: str) -> Path:
    """Write `config.json` and then `model.safetensors` into `folder`; return the latter.

    The same state gives the same bytes. Either file appears under its name only when both are whole
    and on the disk.

    Args:
        state: of a checkpoint.
        weights: which of its weights: "ema", "model", or an average that is an entry of its own, as
            "ema:0.05"; an export holds it as "ema", and its name as "average".

    Raises:
        InputError: the disk is full, the folder cannot be written, or the state cannot be shared.
    """
    from safetensors.torch import save

    path, config = folder / NAME, folder / CONFIG
    about = {"sha256": _NO_DIGEST, **entries_of(state, weights)}
    try:
        metadata = {FORMAT: json.dumps(about, allow_nan=False, separators=(",", ":"))}
        tensors = _named(state[weights], state.get("diffusion", {}))
        _check_tensors(tensors)
        content = save(tensors, metadata)
        digest = hashlib.sha256(content).hexdigest()
        start = 8 + int.from_bytes(content[:8], "little")  # where the tensors begin
        with atomic.replacing(config, path, durable=True) as (new_config, new):
            new_config.write_text(json.dumps(about | {"sha256": digest}, indent=2) + "\n")
            with open(new, "wb") as file:
                file.write(_with_digest(content[:start], _NO_DIGEST, digest))
                file.write(memoryview(content)[start:])
            _check_whole(new)
        atomic.sync_folder(folder)
    except (OSError, TypeError, ValueError) as error:  # of the disk; of JSON; what is read back
        raise InputError(f"{path}: the export could not be written ({one_line(error)}).") from error
    return path


def entries_of(state: dict[str, Any], weights: str) -> dict[str, Any]:
    """The metadata of an export, without the digest of its tensors; arguments as in `write`."""
    average = weights if weights.startswith("ema:") else state.get("average")
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "step": state["step"],
        "run_id": state["run_id"],
        "weights": weights.partition(":")[0],
        **({"average": average} if average and weights != "model" else {}),
        "hparams": shared(state["hparams"]),
    }


def read(path: Path) -> dict[str, Any]:
    """The content of an export as the state of a checkpoint, with either "ema" or "model".

    Raises:
        InputError: it is damaged, of another program, or of a newer version of this one.
    """
    with _answering(path):
        about = _check_whole(path)
        tensors = _tensors(path)
    return {
        "format": FORMAT,
        **{entry: about[entry] for entry in ("schema", "step", "run_id", "hparams")},
        **({"average": about["average"]} if "average" in about else {}),
        about["weights"]: _unprefixed(tensors, NETWORK),
        "diffusion": _unprefixed(tensors, DIFFUSION),
    }


def read_head(path: Path) -> tuple[int, str, dict[str, Any]]:
    """Step, run and configuration of an export, without reading the tensors.

    Raises:
        InputError: as for `read`.
    """
    with _answering(path), open(path, "rb") as file:
        about = _read_about(file)
        return about["step"], about["run_id"], about["hparams"]


def read_foreign(path: Path) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file of another program, by any names.

    Raises:
        OSError: the file does not exist or cannot be opened.
        Refused: it is no such file, is damaged, or holds a tensor that no network has.
    """
    regular_size(path)
    with open(path, "rb") as file:
        _read_header(file)
    return _tensors(path, ("",))


class _Foreign(Exception):
    """A file of another program."""


@contextlib.contextmanager
def _answering(path: Path) -> Iterator[None]:
    """Turn errors of a file into messages about `checkpoint=`."""
    try:
        yield
    except _Foreign:
        raise InputError(f"checkpoint={path}: not an export of this program.") from None
    except InputError as error:
        raise InputError(f"checkpoint={path}: {error}") from None
    except (Refused, OSError) as error:
        raise InputError(
            f"checkpoint={path}: not a whole export of this program ({shown(error, 200)})."
        ) from error


def _with_digest(head: bytes, old: str, new: str) -> bytes:
    """The bytes before the tensors with another checksum."""
    return head.replace(old.encode(), new.encode(), 1)


def _check_whole(path: Path) -> dict[str, Any]:
    """The metadata of a file whose checksum is right."""
    with open(path, "rb") as file:
        about = _read_about(file)
        start = file.tell()
        file.seek(0)
        digest = hashlib.sha256(_with_digest(file.read(start), about["sha256"], _NO_DIGEST))
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != about["sha256"]:
        raise Refused("its checksum is wrong")
    return about


def _read_about(file: BinaryIO) -> dict[str, Any]:
    """The checked metadata of an open file of any origin; leaves `file` where the tensors begin."""
    header = _read_header(file)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise _Foreign
    about = _of_schema_1(metadata) if metadata.get("format") == FORMAT else metadata.get(FORMAT)
    if about is None:
        raise _Foreign
    if isinstance(about, str):
        about = read_json(about, MAX_CONFIGURATION)
    if not isinstance(about, dict):
        raise Refused("its metadata are no object")
    if missing := [entry for entry in ENTRIES if entry not in about]:
        raise Refused(f"it lacks {', '.join(missing)}")
    return about | {"hparams": check_about(about)}


def _read_header(file: BinaryIO) -> Any:
    """The JSON at the start of an open file of any origin, of bounded size."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        raise Refused(f"a header of {length} bytes in a file of {size}")
    return read_json(file.read(length), MAX_HEADER, max_text=MAX_CONFIGURATION)


def _of_schema_1(metadata: dict[str, Any]) -> dict[str, Any]:
    """The entries of an old export, which were texts under a key each."""
    about = dict(metadata)
    for entry in ("schema", "step"):
        if re.fullmatch(r"[0-9]{1,15}", str(about.get(entry))):
            about[entry] = int(about[entry])
    if isinstance(about.get("hparams"), str):
        about["hparams"] = read_json(about["hparams"], MAX_CONFIGURATION)
    return about


def check_about(about: dict[str, Any]) -> dict[str, Any]:
    """Check the types of the metadata; return the configuration with today's names."""
    for entry in ("schema", "step"):
        if type(about[entry]) is not int or not 0 <= about[entry] < 10**15:
            raise Refused(f"{entry}={shown(about[entry])}, which is no whole number")
    if about["schema"] > SCHEMA:
        raise InputError(
            f"its format is version {about['schema']}, newer than this program's {SCHEMA}. "
            "Update the program."
        )
    if about["weights"] not in ("ema", "model"):
        raise Refused(f"weights={shown(about['weights'])}, which is neither ema nor model")
    if not re.fullmatch(AVERAGE, str(about.get("average", "ema:1"))):
        raise Refused(f"average={shown(about['average'])}, which is no average")
    if not isinstance(about["sha256"], str) or not re.fullmatch("[0-9a-f]{64}", about["sha256"]):
        raise Refused("its checksum (sha256) is none")
    if not stored_config.is_word(about["run_id"]):
        raise Refused("its run_id is none")
    hparams = stored_config.read(about["hparams"])
    if "${" in json.dumps(hparams):  # would be filled from the reader's environment
        raise Refused("its configuration refers to what is not in it, by ${...}")
    if "diffusion" not in hparams:
        raise Refused("its configuration lacks diffusion")
    if not isinstance(hparams["choices"].get("job"), str):
        raise Refused("its configuration does not say of which job it is")
    data = hparams["data"]
    if type(data.get("channels")) is not int:
        raise Refused("its data.channels is no whole number")
    size = data.get("image_size")
    if not all(type(side) is int for side in (size if isinstance(size, list) else [size])):
        raise Refused("its data.image_size is no whole number")
    return hparams


def _tensors(path: Path, prefixes: tuple[str, ...] = (NETWORK, DIFFUSION)) -> dict[str, "Tensor"]:
    """The tensors of a file; the library checks that their types, shapes and places fit the file.

    Raises:
        Refused: they do not, or a tensor cannot be of an export.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Copies: the library gives the mapped file itself, which can shrink under us.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except OSError:  # not every file system can map a file into memory
        tensors = _tensors_unmapped(path)
    except Exception as error:  # of the library, whose errors have no common base
        raise Refused(str(error)) from error
    _check_tensors(tensors, prefixes)
    return tensors


def _check_tensors(
    tensors: dict[str, "Tensor"], prefixes: tuple[str, ...] = (NETWORK, DIFFUSION)
) -> None:
    for name, tensor in tensors.items():
        if not name.startswith(prefixes):
            raise Refused(f"a tensor named {name!r}")
        if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
            raise Refused(f"{name}: of type {tensor.dtype}")
        vast = math.prod(max(size, 1) for size in tensor.shape) >= 2**48
        if vast or tensor.dim() > MAX_DIMENSIONS:
            raise Refused(f"{name}: of shape {list(tensor.shape)}")


def _tensors_unmapped(path: Path) -> dict[str, "Tensor"]:
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except Exception as error:
        raise Refused(str(error)) from error


def _named(network: dict[str, "Tensor"], diffusion: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Copies of all tensors by their names in the file; the library refuses shared memory."""
    named = {NETWORK + name: tensor for name, tensor in network.items()}
    named |= {DIFFUSION + name: tensor for name, tensor in diffusion.items()}
    return {name: copy(tensor) for name, tensor in named.items()}


def copy(tensor: "Tensor") -> "Tensor":
    import torch

    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _unprefixed(tensors: dict[str, "Tensor"], prefix: str) -> dict[str, "Tensor"]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
