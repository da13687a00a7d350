"""Symbolic execution of pickles: checks what loading one would do, without loading it."""

import math
import pickletools
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from ddpm.errors import shown
from ddpm.runner.safe_io.plain import MAX_DEPTH, Refused, WillBeTensor, check_plain

MAX_STEPS = 2_000_000  # opcodes of a pickle; a tensor takes about 35


@dataclass(frozen=True)
class Records:
    """Content of an archive: the pickle, and the size of each storage in bytes."""

    pickle: bytes
    storages: dict[str, int]


@dataclass(frozen=True)
class _Global:
    """A reference to a class or function in a pickle; it is not imported."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A storage in the archive: its number of elements."""

    numel: int


_MARK = object()
_ITEMSIZE = {
    "Bool": 1, "Byte": 1, "Char": 1, "Short": 2, "Half": 2, "BFloat16": 2, "Int": 4, "Float": 4,
    "Long": 8, "Double": 8,
}  # fmt: skip
_STORAGES = {f"torch {name}Storage": size for name, size in _ITEMSIZE.items()}
_CALLED = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def vet_pickle(records: Records) -> Any:
    """Check a pickle and return its content, with `WillBeTensor` in place of tensors.

    Only the opcodes that torch.save writes for plain data and dense tensors are allowed; each
    tensor is compared with the storage that it views.

    Raises:
        Refused: the pickle holds anything else.
    """
    content, attributes = _follow(records)
    check_plain(content, tensors=True)
    check_plain(attributes)
    return content


def _follow(records: Records) -> tuple[Any, list[Any]]:
    """The content of the pickle, and the attributes of its dicts."""
    machine = _Machine(records.storages)
    for count, (step, argument, _) in enumerate(pickletools.genops(records.pickle)):
        if count > MAX_STEPS:
            raise Refused(f"a pickle of more than {MAX_STEPS:,} steps")
        if step.name == "STOP":
            return machine.stack.pop(), machine.attributes
        machine.take(step.name, argument)
    raise Refused("damaged (its pickle has no end)")


class _Machine:
    """Executes the opcodes that torch.save writes on placeholders, and refuses all others.

    Args:
        storages: size in bytes by the name of the member.
    """

    def __init__(self, storages: dict[str, int]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.attributes: list[Any] = []

    def take(self, name: str, argument: Any) -> None:
        """Execute one opcode; `name` as in pickletools."""
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE" or name in _TUPLES:
            stack.append(tuple(self.popped(_TUPLES.get(name))))
        elif name in ("APPEND", "APPENDS"):
            items = self.popped(1 if name == "APPEND" else None)
            list.extend(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.popped(2 if name == "SETITEM" else None))
        elif name in ("GLOBAL", "BINPERSID", "REDUCE", "BUILD"):
            self.make(name, argument)
        elif name != "PROTO" or argument != 2:
            raise Refused(f"it holds code or unknown objects ({name.lower()})")

    def popped(self, count: int | None) -> list[Any]:
        """Pop `count` items from the stack; None: all above the last mark, and the mark."""
        stack = self.stack
        if count is None:
            start = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
            items = stack[start + 1 :]
        else:
            start = len(stack) - count
            if start < 0:
                raise IndexError("the stack is empty")
            items = stack[start:]
        del stack[start:]
        return items

    def set_items(self, items: list[Any]) -> None:
        """Add alternating keys and values to the dict on top of the stack."""
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # hashing nested tuples can take forever
                raise Refused(f"the key {type(key).__name__} is not a string")
            dict.__setitem__(self.stack[-1], key, value)

    def make(self, name: str, argument: Any) -> None:
        """The opcodes that create objects: they yield placeholders."""
        stack = self.stack
        if name == "GLOBAL":
            if argument not in _CALLED and argument not in _STORAGES:
                raise Refused(f"it holds code or unknown objects ({shown(argument)})")
            stack.append(_Global(argument))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), self.storages))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = _call(stack[-1], arguments)
        else:  # BUILD: the module versions of a state_dict
            state = stack.pop()
            if type(stack[-1]) is not OrderedDict or type(state) is not dict:
                raise Refused(f"it holds code or unknown objects ({type(stack[-1]).__name__})")
            if set(state) != {"_metadata"}:
                raise Refused("it holds a dict with attributes of its own")
            self.attributes.append(dict(state))


def _storage(key: Any, sizes: dict[str, int]) -> _Storage:
    """A storage that a pickle refers to. It must be as long as its member: torch reads beyond."""
    tag, kind, name, location, numel = key
    itemsize = _STORAGES.get(kind.name) if type(kind) is _Global else None
    if tag != "storage" or type(name) is not str or type(location) is not str or not itemsize:
        raise Refused("it holds code or unknown objects (a strange storage)")
    if type(numel) is not int or sizes.get(name) != numel * itemsize:
        raise Refused(f"storage {shown(name)} is not as long as the pickle says")
    return _Storage(numel)


def _call(function: Any, arguments: Any) -> Any:
    """The result of a call in a pickle: an OrderedDict, a tensor or a parameter."""
    name = function.name if type(function) is _Global else type(function).__name__
    if name == _CALLED[0] and arguments == ():
        return OrderedDict()
    if name == _CALLED[1]:
        storage, offset, size, stride, requires_grad, hooks = arguments
        if type(storage) is _Storage and type(requires_grad) is bool and _is_empty(hooks):
            _check_view(storage, offset, size, stride)
            return WillBeTensor()
    if name == _CALLED[2]:
        data, requires_grad, hooks = arguments
        if type(data) is WillBeTensor and type(requires_grad) is bool and _is_empty(hooks):
            return WillBeTensor()
    raise Refused(f"it holds code or unknown objects ({shown(name)})")


def _is_empty(hooks: Any) -> bool:
    return type(hooks) is OrderedDict and not hooks


def _check_view(storage: _Storage, offset: Any, size: Any, stride: Any) -> None:
    """Check that a tensor views each element of its storage at most once, and none beyond."""
    if type(size) is not tuple or type(stride) is not tuple:
        raise Refused("a tensor without a shape")
    if any(type(n) is not int or not 0 <= n < 2**48 for n in (offset, *size, *stride)):
        raise Refused("a tensor of strange shape")
    if len(size) != len(stride) or len(size) > MAX_DEPTH:
        raise Refused("a tensor of strange shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.numel or (math.prod(size) and last >= storage.numel):
        raise Refused("a tensor larger than its storage")
