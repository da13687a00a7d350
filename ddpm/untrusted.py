"""Files from strangers: read as plain data, or refused with a reason, and never as code.

What may come out is dicts, lists, texts, numbers and dense tensors. Each format is looked through
in a way that costs no more than its bytes before anything is made of it: a file of some hundred
bytes can stand for gigabytes, or for a walk that never ends.
"""

import itertools
import json
import math
import pickletools
import stat
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from ddpm.errors import shown

MAX_DEPTH = 32
MAX_NODES = 100_000
MAX_TEXT = 64 * 1024
MAX_YAML = 256 * 1024
MAX_PICKLE = 16 * 1024**2
MAX_STEPS = 400_000  # of a pickle; a tensor takes some 35
MAX_MEMBERS = 100_000
MAX_DIRECTORY = 4 * 1024**2  # of a zip; a member takes some 80 bytes


class Refused(ValueError):
    """A file or value that is not plain data; the message is one line, safe to print."""


def check_plain(node: Any, *, tensors: bool = False) -> None:
    """Hold a value against what plain data are: dicts with text or whole numbers as keys, lists,
    tuples, texts, numbers, booleans, None; with `tensors`, dense ones that own what they show.

    What is referred to twice counts twice, so that a small graph cannot unfold to a huge tree.

    Raises:
        Refused: something else is in it, or it is too deep, too many or too long.
    """
    # Iterators and not their items are stacked: a walk that is broken off has touched no more.
    walks: list[Iterator[tuple[Any, Any]]] = [iter([("", node)])]
    seen = 0
    while walks:
        name, value = next(walks[-1], (None, walks))
        if value is walks:
            walks.pop()
            continue
        seen += 1
        if seen > MAX_NODES:
            raise Refused(f"more than {MAX_NODES:,} values")
        kind = type(value)
        if kind is dict or kind is OrderedDict:
            for key in dict.keys(value):
                if type(key) not in (str, int):
                    raise Refused(f"{_in(name)}the key {shown(repr(key))} is not a text")
                _check_scalar(key, name)
            walks.append(iter(dict.items(value)))  # not .items(), which a file could hide
        elif kind is list or kind is tuple:
            walks.append(zip(itertools.repeat(name), value, strict=False))
        elif kind in (str, int, float, bool, type(None)):
            _check_scalar(value, name)
        elif not tensors or kind in (_Global, _Storage):
            raise Refused(f"{_in(name)}{shown(kind.__name__)} is not plain data")
        elif kind is not _Tensor:
            _check_tensor(value, name)
        if len(walks) > MAX_DEPTH + 1:
            raise Refused(f"nested deeper than {MAX_DEPTH}")


def _check_scalar(value: Any, name: Any) -> None:
    if type(value) is str and len(value) > MAX_TEXT:
        raise Refused(f"{_in(name)}a text of {len(value):,} characters")
    if type(value) is int and value.bit_length() > 64:
        raise Refused(f"{_in(name)}a whole number of {value.bit_length()} bits")


def _check_tensor(value: Any, name: Any) -> None:
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise Refused(f"{_in(name)}{shown(type(value).__name__)} is not plain data")
    if value.layout is not torch.strided or value.is_quantized or value.is_complex():
        raise Refused(f"{_in(name)}a tensor that is not of plain numbers")
    if value.device.type != "cpu":
        raise Refused(f"{_in(name)}a tensor without numbers, of device {value.device.type}")
    if value._backward_hooks:
        raise Refused(f"{_in(name)}a tensor with hooks")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise Refused(f"{_in(name)}a tensor larger than its storage")


def _in(name: Any) -> str:
    return f"{shown(name)}: " if name != "" else ""


def _regular(path: Path) -> int:
    """The size of a file; a pipe would make us wait for ever, a device never ends.

    Raises:
        OSError: there is none.
        Refused: it is something else.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Refused("not a file")
    return status.st_size


# YAML and JSON


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """The safe loader; a key that stands twice in a mapping is an error, as it is to Hydra."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if key.value in keys if isinstance(key, yaml.ScalarNode) else True:
                problem = f"the key {shown(repr(key.value))} twice"
                if not isinstance(key, yaml.ScalarNode):
                    problem = "a key that is not a text"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The plain data of a YAML file of at most 256 KiB.

    Raises:
        OSError: there is no such file, or it cannot be read.
        Refused: it is not YAML, not plain data, or out to exhaust whoever reads it.
    """
    if _regular(path) > MAX_YAML:
        raise Refused(f"larger than {MAX_YAML // 1024} KiB")
    with open(path, "rb") as file:
        data = file.read(MAX_YAML + 1)  # whatever has grown since
    if len(data) > MAX_YAML:
        raise Refused(f"larger than {MAX_YAML // 1024} KiB")
    try:
        text = data.decode("utf-8-sig")
        _vet_yaml(text)
        made = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise Refused(f"line {line}, column {column}: not UTF-8") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise Refused(f"line {line}, column {column}: {shown(error.reason)}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise Refused(f"{where}{shown(error.problem or error.context, 200)}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(shown(error, 200)) from None  # a date or a number that is none
    check_plain(made)
    return made


def _vet_yaml(text: str) -> None:
    """Refuse what can grow, going through the events alone: depth, aliases, merges, tags."""
    open_nodes: list[list[Any]] = []  # [anchor, nodes when it began]
    sizes: dict[str, int] = {}  # nodes below each anchor
    seen = 0
    for event in yaml.parse(text, Loader=_Loader):
        mark = event.start_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: "
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            anchor, before = open_nodes.pop()
            sizes[anchor] = seen - before
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        seen += 1
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise Refused(f"{where}*{shown(event.anchor)} stands within itself")
            seen += sizes.get(event.anchor, 0)
        elif event.tag not in (None, "!"):  # "!" alone says that a text is a text
            raise Refused(f"{where}the tag {shown(event.tag)} is not allowed")
        elif isinstance(event, yaml.ScalarEvent):
            if event.value == "<<" and event.implicit[0]:
                raise Refused(f"{where}<< is not allowed")
            if len(event.value) > MAX_TEXT:
                raise Refused(f"{where}a text of {len(event.value):,} characters")
            sizes[event.anchor] = 1
        else:
            open_nodes.append([event.anchor, seen - 1])
        if len(open_nodes) > MAX_DEPTH:
            raise Refused(f"{where}nested deeper than {MAX_DEPTH}")
        if seen > MAX_NODES:
            raise Refused(f"{where}more than {MAX_NODES:,} values")


def read_json(text: bytes | str, limit: int) -> Any:
    """The plain data of a JSON text of at most `limit` bytes or characters.

    Raises:
        Refused: it is longer, not JSON, names a key twice, or is not plain data.
    """
    if len(text) > limit:
        raise Refused(f"{len(text):,} bytes of JSON, more than {limit:,}")
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        made = json.loads(decoded, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise Refused(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise Refused(f"nested deeper than {MAX_DEPTH}") from None
    except UnicodeDecodeError:
        raise Refused("not UTF-8") from None
    except ValueError as error:
        raise error if isinstance(error, Refused) else Refused(shown(error, 200)) from None
    check_plain(made)
    return made


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise Refused(f"the key {shown(repr(key))} twice")
        made[key] = value
    return made


# Archives of torch.save


def read_archive(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU: plain data and dense tensors.

    The directory, the checksums and each step of the pickle are checked before torch reads the
    file. `weights_only` alone lets through a `bytearray` of any size, tensors beyond what is
    stored, and tuples whose hash takes for ever.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        Refused: anything else is in it, or it is damaged.
    """
    size = _regular(path)
    with open(path, "rb") as file:  # once: what was looked through is what is loaded
        _vet_archive(file, size)
        import torch

        file.seek(0)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch meets that we have missed
            raise Refused(f"torch cannot load it ({shown(error)})") from error
    check_plain(state, tensors=True)
    return state


def check_archive(path: Path) -> None:
    """All that `read_archive` checks, without loading the tensors.

    Raises:
        OSError, Refused: as `read_archive` does.
    """
    size = _regular(path)
    with open(path, "rb") as file:
        _vet_archive(file, size)


def _vet_archive(file: IO[bytes], size: int) -> None:
    try:
        _vet_pickle(_vet_zip(file, size))
    except Refused:
        raise
    except Exception as error:  # zipfile raises seven kinds of error, and a pickle can do all
        raise Refused(f"damaged ({shown(error) or type(error).__name__})") from error


@dataclass(frozen=True)
class _Records:
    """What an archive holds: the pickle and how many bytes each storage has."""

    pickle: bytes
    storages: dict[str, int]


def _vet_zip(file: IO[bytes], size: int) -> _Records:
    """See that a zip is what `torch.save` writes: each member once, whole, as it is, its checksum
    right. torch has a reader of its own, so nothing may be left that two readers see differently.
    """
    _vet_end(file, size)
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    if not members or len(members) > MAX_MEMBERS:
        raise Refused(f"an archive of {len(members):,} members")
    names = [member.filename for member in members]
    root = members[0].filename.split("/")[0]
    # torch takes capitals for small letters, and zipfile ends a name at its first NUL.
    if len({name.lower() for name in names}) < len(names):
        raise Refused("an archive with two members of one name")
    for name in (member.orig_filename for member in members):
        parts = name.split("/")
        if "\0" in name or len(parts) < 2 or parts[0] != root or {"", ".", ".."} & {*parts}:
            raise Refused(f"an archive with a member {shown(name)}")
    if f"{root}/constants.pkl" in names or any(n.startswith(f"{root}/code/") for n in names):
        raise Refused("a program of TorchScript, not data")
    if f"{root}/data.pkl" not in names:
        raise Refused("an archive, but not one of torch.save: it lacks data.pkl")
    end = 0
    for member in sorted(members, key=lambda m: m.header_offset):
        name = shown(member.filename)
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise Refused(f"an archive with compressed members ({name})")
        if member.flag_bits & 0x1:
            raise Refused(f"an archive with encrypted members ({name})")
        if member.external_attr & 0x10:  # torch would skip its bytes and give those of others
            raise Refused(f"an archive with a folder for a member ({name})")
        if member.header_offset < end:
            raise Refused(f"an archive whose members overlap ({name})")
        end = member.header_offset + 30 + len(member.filename) + member.file_size
    if end > archive.start_dir:
        raise Refused("an archive whose members overlap")
    if archive.getinfo(f"{root}/data.pkl").file_size > MAX_PICKLE:
        raise Refused(f"an archive whose data.pkl is larger than {MAX_PICKLE // 1024**2} MiB")
    if (wrong := archive.testzip()) is not None:
        raise Refused(f"damaged (the checksum of {shown(wrong)} is wrong)")
    prefix = f"{root}/data/"
    storages = {
        m.filename.removeprefix(prefix): m.file_size
        for m in members
        if m.filename.startswith(prefix)
    }
    return _Records(archive.read(f"{root}/data.pkl"), storages)


def _vet_end(file: IO[bytes], size: int) -> None:
    """See that a zip starts with its first byte, ends with its last and has a directory of sane
    size where it says: the directory is the one part of a zip that is read whole."""
    head = file.read(4)
    if size == 0:
        raise Refused("the file is empty")
    if head != b"PK\x03\x04":
        kind = "a bare pickle, " if head[:1] == b"\x80" else ""
        raise Refused(f"{kind}not an archive of torch.save")
    file.seek(max(0, size - 98))
    tail = file.read(98)
    if tail[-22:-18] != b"PK\x05\x06" or len(tail) < 98:
        raise Refused("damaged (cut short, or with something behind its end)")
    *_, length, offset, comment = struct.unpack("<4s4H2LH", tail[-22:])
    behind = 22
    if tail[-42:-38] == b"PK\x06\x07":  # zip64, which torch always writes
        if tail[:4] != b"PK\x06\x06":
            raise Refused("damaged (its end is not where it should be)")
        length, offset = struct.unpack("<2Q", tail[40:56])
        place = struct.unpack("<Q", tail[-34:-26])[0]
        behind = 98 if place == size - 98 else 0
    if comment or offset + length + behind != size:
        raise Refused("damaged (its directory is not where it says)")
    if length > MAX_DIRECTORY:
        raise Refused(f"an archive whose directory has {length:,} bytes")


@dataclass(frozen=True)
class _Global:
    """A name in a pickle that stands for a class or function; here it stays a name."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Numbers in a member of the archive: how many."""

    numel: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor that would be made; all that counts of it has been checked."""


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


def _vet_pickle(records: _Records) -> None:
    """Go through a pickle without making anything but dicts, lists, texts and numbers of it.

    Allowed is what torch.save writes for plain data and dense tensors; each tensor is held against
    the member that it shows.

    Raises:
        Refused: there is anything else in it.
    """
    made, attributes = _follow(records)
    check_plain(made, tensors=True)
    check_plain(attributes)


def _follow(records: _Records) -> tuple[Any, list[Any]]:
    """What the pickle would give, tensors as `_Tensor`, and attributes of its dicts."""
    stack: list[Any] = []
    attributes: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        place = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
        items = stack[place + 1 :]
        del stack[place:]
        return items

    def set_items(items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # the hash of nested tuples can take for ever
                raise Refused(f"the key {type(key).__name__} is not a text")
            dict.__setitem__(stack[-1], key, value)

    for count, (step, argument, _) in enumerate(pickletools.genops(records.pickle)):
        name = step.name
        if count > MAX_STEPS:
            raise Refused(f"a pickle of more than {MAX_STEPS:,} steps")
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in _TUPLES:
            items = tuple(stack[-_TUPLES[name] :])
            del stack[-_TUPLES[name] :]
            stack.append(items)
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else since_mark()
            list.extend(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            if name == "SETITEM":
                items = stack[-2:]
                del stack[-2:]
            else:
                items = since_mark()
            set_items(items)
        elif name == "GLOBAL":
            if argument not in _CALLED and argument not in _STORAGES:
                raise Refused(f"it holds code or unknown objects ({shown(argument)})")
            stack.append(_Global(argument))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), records.storages))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = _call(stack[-1], arguments)
        elif name == "BUILD":  # a state_dict's versions of its modules
            state = stack.pop()
            if type(stack[-1]) is not OrderedDict or type(state) is not dict:
                raise Refused(f"it holds code or unknown objects ({type(stack[-1]).__name__})")
            if set(state) != {"_metadata"}:
                raise Refused("it holds a dict with attributes of its own")
            attributes.append(dict(state))
        elif name == "STOP":
            return stack.pop(), attributes
        elif name != "PROTO" or argument != 2:
            raise Refused(f"it holds code or unknown objects ({name.lower()})")
    raise Refused("damaged (its pickle has no end)")


def _storage(key: Any, sizes: dict[str, int]) -> _Storage:
    """The storage that a pickle refers to; as long as the member, or torch would read beyond it."""
    word, kind, name, location, numel = key
    itemsize = _STORAGES.get(kind.name) if type(kind) is _Global else None
    if word != "storage" or type(name) is not str or type(location) is not str or not itemsize:
        raise Refused("it holds code or unknown objects (a strange storage)")
    if type(numel) is not int or sizes.get(name) != numel * itemsize:
        raise Refused(f"storage {shown(name)} is not as long as the pickle says")
    return _Storage(numel)


def _call(function: Any, arguments: Any) -> Any:
    """What a call in a pickle would give: an OrderedDict, a tensor or a parameter."""
    name = function.name if type(function) is _Global else type(function).__name__
    if name == _CALLED[0] and arguments == ():
        return OrderedDict()
    if name == _CALLED[1]:
        storage, offset, size, stride, requires_grad, hooks = arguments
        if type(storage) is _Storage and type(requires_grad) is bool and _is_empty(hooks):
            _check_view(storage, offset, size, stride)
            return _Tensor()
    if name == _CALLED[2]:
        data, requires_grad, hooks = arguments
        if type(data) is _Tensor and type(requires_grad) is bool and _is_empty(hooks):
            return _Tensor()
    raise Refused(f"it holds code or unknown objects ({shown(name)})")


def _is_empty(hooks: Any) -> bool:
    return type(hooks) is OrderedDict and not hooks


def _check_view(storage: _Storage, offset: Any, size: Any, stride: Any) -> None:
    """A tensor may show each number of its storage once, and none beyond."""
    if type(size) is not tuple or type(stride) is not tuple:
        raise Refused("a tensor without a shape")
    if any(type(n) is not int or not 0 <= n < 2**48 for n in (offset, *size, *stride)):
        raise Refused("a tensor of strange shape")
    if len(size) != len(stride) or len(size) > MAX_DEPTH:
        raise Refused("a tensor of strange shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.numel or (math.prod(size) and last >= storage.numel):
        raise Refused("a tensor larger than its storage")
