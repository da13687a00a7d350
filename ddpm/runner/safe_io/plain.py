"""The definition of plain data, and limits on their amount in one file."""

import itertools
import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.errors import shown

MAX_DEPTH = 32
MAX_NODES = 100_000
MAX_TEXT = 64 * 1024
_END: Any = object()


class Refused(ValueError):
    """A file or value that is not plain data. The message is one line, safe to print."""


@dataclass(frozen=True)
class WillBeTensor:
    """Placeholder for a checked tensor in the result of a pickle that was not executed."""


def check_plain(node: Any, *, tensors: bool = False, max_text: int = MAX_TEXT) -> None:
    """Check that a value is plain data: dicts with strings or integers as keys, lists, tuples,
    strings, numbers, booleans, None.

    A node that is referenced twice counts twice, so a small graph cannot unfold to a huge tree.

    Args:
        tensors: also allow dense tensors that own their storage.
        max_text: maximal length of a string.

    Raises:
        Refused: it holds something else, is nested too deeply, or is too large.
    """
    # A stack of iterators, not of items: after a refusal nothing more has been visited.
    walks: list[Iterator[tuple[Any, Any]]] = [iter([("", node)])]
    seen = 0
    while walks:
        name, value = next(walks[-1], (None, _END))
        if value is _END:
            walks.pop()
            continue
        seen += 1
        if seen > MAX_NODES:
            raise Refused(f"more than {MAX_NODES:,} values")
        kind = type(value)
        if kind is dict or kind is OrderedDict:
            for key in dict.keys(value):
                if type(key) not in (str, int):
                    raise Refused(f"{_in(name)}the key {shown(repr(key))} is not a string")
                _check_scalar(key, name, max_text)
            walks.append(iter(dict.items(value)))  # not .items(), which a subclass could override
        elif kind is list or kind is tuple:
            walks.append(zip(itertools.repeat(name), value, strict=False))
        elif kind in (str, int, float, bool, type(None)):
            _check_scalar(value, name, max_text)
        elif not tensors:
            raise Refused(f"{_in(name)}{shown(kind.__name__)} is not plain data")
        elif kind is not WillBeTensor:
            _check_tensor(value, name)
        if len(walks) > MAX_DEPTH + 1:
            raise Refused(f"nested deeper than {MAX_DEPTH}")


def _check_scalar(value: Any, name: Any, max_text: int) -> None:
    if type(value) is str and len(value) > max_text:
        raise Refused(f"{_in(name)}a string of {len(value):,} characters, more than {max_text:,}")
    if type(value) is int and value.bit_length() > 64:
        raise Refused(f"{_in(name)}an integer of {value.bit_length()} bits")


def _check_tensor(value: Any, name: Any) -> None:
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise Refused(f"{_in(name)}{shown(type(value).__name__)} is not plain data")
    if value.layout is not torch.strided or value.is_quantized or value.is_complex():
        raise Refused(f"{_in(name)}a tensor that is sparse, quantized or complex")
    if value.device.type != "cpu":
        raise Refused(f"{_in(name)}a tensor on the device {value.device.type}")
    if value._backward_hooks:
        raise Refused(f"{_in(name)}a tensor with hooks")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise Refused(f"{_in(name)}a tensor larger than its storage")


def _in(name: Any) -> str:
    return f"{shown(name)}: " if name != "" else ""


def regular_size(path: Path) -> int:
    """The size of a regular file; reading a pipe or a device might never end.

    Raises:
        OSError: it does not exist.
        Refused: it is not a regular file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Refused("not a file")
    return status.st_size
