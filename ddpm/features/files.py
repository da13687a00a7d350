"""Files of weights: their digest is checked before anything of them is interpreted."""

import hashlib
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor, nn

from ddpm.errors import InputError, listed, one_line, shown
from ddpm.runner.safe_io.plain import Refused, regular_size
from ddpm.runner.safe_io.torch_archive import read_known


def read(path: Path, sha256: str | None, remedy: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file, and its SHA-256.

    Args:
        path: a safetensors file; any other name stands for a file of torch.save.
        sha256: the expected one; None: any, of a safetensors file alone, which holds no code.
        remedy: the end of an error message: what to do.

    Raises:
        InputError: the file is missing, another one than expected, or damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, sha256)
        if sha256 is None:
            raise Refused("its name does not end in .safetensors")
        return read_known(path, sha256), sha256
    except (OSError, Refused) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else one_line(error)
        raise InputError(f"features.weights={shown(path, 200)}: {reason}.\n{remedy}") from None


def _read_safetensors(path: Path, sha256: str | None) -> tuple[dict[str, Tensor], str]:
    regular_size(path)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise Refused(f"its SHA-256 is {found}, not {sha256}")
    try:
        return load(content), found
    except Exception as error:  # of the library, whose errors have no common base
        raise Refused(f"not a safetensors file ({one_line(error)})") from error


def fill(net: nn.Module, tensors: Any, what: str) -> None:
    """Copy the tensors of a file into a network, all of them.

    Args:
        what: the network, in an error message.

    Raises:
        InputError: names or shapes differ from the network's.
    """
    wanted, found = _shapes(net.state_dict()), _shapes(tensors)
    wrong = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
    if wrong:
        raise InputError(
            f"features.weights: not the weights of {what}: {len(wrong)} tensors are missing, "
            f"unknown or of another shape ({listed([shown(name) for name in wrong], 3)})."
        )
    net.load_state_dict(tensors)


def _shapes(tensors: Any) -> dict[str, tuple[int, ...] | str]:
    items = tensors.items() if isinstance(tensors, dict) else ()
    return {str(k): tuple(v.shape) if isinstance(v, Tensor) else "no tensor" for k, v in items}
