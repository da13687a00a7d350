"""A network to give to others: the weights as safetensors, with what they mean in the header.

`model.safetensors` alone is enough to sample from. It holds tensors and text and no code, and what
a stranger has no use for is not in it: no path, no tracker, no machine. `config.json` beside it
says the same to people and to other programs; it is never read here.

A file of somebody else's is checked before the library opens it, for it sees only that the header
and the tensors fit each other: sizes and counts are bounded, and the checksum is over all bytes.
"""

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from ddpm.errors import InputError, shown
from ddpm.runner import roles
from ddpm.runner.runs import stored_config
from ddpm.runner.safe_io import atomic
from ddpm.runner.safe_io.plain import Refused
from ddpm.runner.safe_io.yaml_json import MAX_YAML, read_json

NAME, SUFFIX, CONFIG = "model.safetensors", ".safetensors", "config.json"
FORMAT = "hydra-ddpm"
SCHEMA = 1  # raise it when the meaning of an entry changes
ENTRIES = ("schema", "step", "run_id", "weights", "hparams", "sha256")
PARTS = (*roles.PROCESS, *roles.DRAWING)
NETWORK, DIFFUSION = "network.", "diffusion."  # before the names of the tensors of each

# Bytes. JSON within JSON takes up to four times as many as the YAML that a run writes: \\\" for ".
MAX_CONFIGURATION = 4 * MAX_YAML
MAX_HEADER = 2 * MAX_CONFIGURATION  # with the tensors, of which one takes some 100
MAX_DIMENSIONS = 16

DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_NO_DIGEST = "0" * 64  # stands in the place of the checksum while that is taken


def shared(hparams: dict[str, Any]) -> dict[str, Any]:
    """What others need of a run's configuration to sample as it does.

    Paths of this machine become null, and a classifier that guides stays here, with its guidance.
    """
    parts = {part: _without_paths(hparams[part]) for part in PARTS if part in hparams}
    choices = {k: v for k, v in hparams["choices"].items() if k in (*PARTS, "job")}
    parts["data"] = {key: value for key, value in parts["data"].items() if key != "data_dir"}
    if "root" in parts["data"]:
        parts["data"]["root"] = None
    if "classifier" in parts.get("guidance", {}):
        del parts["guidance"]
        choices["guidance"] = "none"
    others = {key: hparams[key] for key in ("version", "seed") if key in hparams}
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

    The same state gives the same bytes, which the library's own writer does not. Either file
    appears under its name only when both are whole and on the disk.

    Args:
        state: of a checkpoint.
        weights: which of its weights: "ema" or "model".

    Raises:
        InputError: the disk is full, the folder cannot be written, or the state is none that can
            be shared.
    """
    path, config = folder / NAME, folder / CONFIG
    tensors = _named(state[weights], state.get("diffusion", {}))
    hparams = shared(state["hparams"])
    about = {
        "format": FORMAT,
        "schema": SCHEMA,
        "step": state["step"],
        "run_id": state["run_id"],
        "weights": weights,
    }
    try:
        head, digest = _head(tensors, about, hparams)
        text = json.dumps(about | {"sha256": digest, "hparams": hparams}, indent=2) + "\n"
        with atomic.replacing(config, path, durable=True) as (new_config, new):
            new_config.write_bytes(text.encode())
            with open(new, "wb") as file:
                file.write(head)
                for tensor in tensors.values():
                    file.write(_bytes(tensor))
            _check_whole(new)
        atomic.sync_folder(folder)
    except (OSError, TypeError, ValueError) as error:  # of the disk; of JSON; what is read back
        raise InputError(f"{path}: the export could not be written ({shown(error)}).") from error
    return path


def read(path: Path) -> dict[str, Any]:
    """A file that `write` made, as the state of a checkpoint: one of "ema" and "model" is in it.

    Raises:
        InputError: it is damaged, of another program, or of a newer version of this one.
    """
    with _answering(path):
        _, metadata, hparams = _check_whole(path)
        tensors = _tensors(path)
    return {
        "format": FORMAT,
        "schema": int(metadata["schema"]),
        "step": int(metadata["step"]),
        "run_id": metadata["run_id"],
        "hparams": hparams,
        metadata["weights"]: _unprefixed(tensors, NETWORK),
        "diffusion": _unprefixed(tensors, DIFFUSION),
    }


def read_hparams(path: Path) -> dict[str, Any]:
    """The configuration in a file that `write` made, without a look at the tensors.

    Raises:
        InputError: as for `read`.
    """
    with _answering(path), open(path, "rb") as file:
        return _read_head(file)[2]


class _Foreign(Exception):
    """A file of another program."""


@contextlib.contextmanager
def _answering(path: Path) -> Iterator[None]:
    """Say what is wrong with a file in the words of a checkpoint."""
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


def _head(
    tensors: dict[str, Tensor], about: dict[str, Any], hparams: dict[str, Any]
) -> tuple[bytes, str]:
    """The bytes before the tensors, and the checksum of the whole file that stands in them."""
    metadata = {key: str(value) for key, value in about.items()}
    metadata["hparams"] = json.dumps(hparams, allow_nan=False, separators=(",", ":"))
    metadata["sha256"] = _NO_DIGEST
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise TypeError(f"{name} is of {tensor.dtype}")
        begin, end = end, end + tensor.numel() * tensor.element_size()
        dtype, shape = _NAMES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head)
    for tensor in tensors.values():
        digest.update(_bytes(tensor))
    return _with_digest(head, _NO_DIGEST, digest.hexdigest()), digest.hexdigest()


def _with_digest(head: bytes, old: str, new: str) -> bytes:
    """The head with another checksum: quotes inside of a text are escaped, so no text is meant."""
    before, after = (f'"sha256":"{digest}"'.encode() for digest in (old, new))
    if head.count(before) != 1:
        raise Refused("its checksum is not where it belongs")
    return head.replace(before, after)


def _check_whole(path: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Entries of the tensors, metadata and configuration of a file whose checksum is right."""
    with open(path, "rb") as file:
        entries, metadata, hparams = _read_head(file)
        start = file.tell()
        _check_layout(entries, os.fstat(file.fileno()).st_size - start)
        file.seek(0)
        head = _with_digest(file.read(start), metadata["sha256"], _NO_DIGEST)
        digest = hashlib.sha256(head)
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != metadata["sha256"]:
        raise Refused("its checksum is wrong")
    return entries, metadata, hparams


def _read_head(file: BinaryIO) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """The same, from a head that may be anybody's; leaves `file` where the tensors begin."""
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise Refused(f"it is {size} bytes long")
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, size - 8):
        raise Refused(f"a header of {length} bytes in a file of {size}")
    text = file.read(length)
    if len(text) < length:
        raise Refused("it ends in the header")
    header = read_json(_decoded(text), MAX_HEADER, max_text=MAX_CONFIGURATION)
    if not isinstance(header, dict):
        raise Refused("its header is no object")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _Foreign
    if wrong := [k for k in ENTRIES if not isinstance(metadata.get(k), str)]:
        raise Refused(f"it lacks {', '.join(wrong)}")
    if (schema := _whole_number(metadata, "schema")) > SCHEMA:
        raise InputError(
            f"its format is version {schema}, newer than this program's {SCHEMA}. "
            "Update the program."
        )
    _whole_number(metadata, "step")
    if metadata["weights"] not in ("ema", "model"):
        raise Refused(f"weights={metadata['weights']}, which is neither ema nor model")
    if not re.fullmatch("[0-9a-f]{64}", metadata["sha256"]):
        raise Refused("its checksum is none")
    if not stored_config.is_word(metadata["run_id"]):
        raise Refused("its run_id is none")
    return header, metadata, _read_configuration(metadata["hparams"])


def _read_configuration(text: str) -> dict[str, Any]:
    hparams = stored_config.read(read_json(text, MAX_CONFIGURATION))
    if "${" in json.dumps(hparams):  # what the environment of whoever reads it says
        raise Refused("its configuration refers to what is not in it, by ${...}")
    for part in ("model", "diffusion", "data"):
        if part not in hparams:
            raise Refused(f"its configuration lacks {part}")
    if not all(isinstance(hparams.get(part, {}), dict) for part in PARTS):
        raise Refused("a part of its configuration is none")
    if not isinstance(hparams["choices"].get("job"), str):
        raise Refused("its configuration does not say of which job it is")
    for key in ("channels", "image_size"):
        if type(hparams["data"].get(key)) is not int:
            raise Refused(f"its data.{key} is no whole number")
    return hparams


def _check_layout(entries: dict[str, Any], size: int) -> None:
    """Hold what the header says of the tensors against the bytes that are there."""
    spans = []
    for name, entry in entries.items():
        if not name.startswith((NETWORK, DIFFUSION)):
            raise Refused(f"a tensor named {name!r}")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise Refused(f"{name}: its entry is none of a tensor")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise Refused(f"{name}: of type {dtype}")
        if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS or _numel(shape) >= 2**48:
            raise Refused(f"{name}: of shape {shape}")
        if not _are_sizes(offsets) or len(offsets) != 2:
            raise Refused(f"{name}: at {offsets}")
        if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
            raise Refused(f"{name}: {offsets[1] - offsets[0]} bytes for {dtype} of shape {shape}")
        spans.append(offsets)
    end = 0
    for begin, after in sorted(spans):
        if begin != end:
            raise Refused("its tensors overlap, or have gaps between them")
        end = after
    if end != size:
        raise Refused(f"{size} bytes of tensors, where its header says {end}")


def _are_sizes(node: Any) -> bool:
    return isinstance(node, list) and all(type(n) is int and 0 <= n < 2**48 for n in node)


def _numel(shape: list[int]) -> int:
    """As many numbers as there are, or would be if no size were 0."""
    return math.prod(max(n, 1) for n in shape)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Copies: what the library gives is the file itself, which can shrink under us.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except OSError:  # not every file system can map a file into memory
        return _tensors_unmapped(path)
    except Exception as error:  # whatever the library meets in a file that is not ours
        raise Refused(str(error)) from error


def _tensors_unmapped(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())
    except Exception as error:
        raise Refused(str(error)) from error


def _whole_number(metadata: dict[str, str], key: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", metadata[key]):
        raise Refused(f"{key}={metadata[key]}, which is no whole number")
    return int(metadata[key])


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise Refused("its header is no text") from None


def _named(network: dict[str, Tensor], diffusion: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors by their names in the file: the widest types first, which keeps each aligned."""
    named = {NETWORK + name: tensor for name, tensor in network.items()}
    named |= {DIFFUSION + name: tensor for name, tensor in diffusion.items()}
    return dict(sorted(named.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _unprefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor as they lie in the file."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())
