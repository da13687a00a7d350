"""Foreign files are read as data or refused: in bounded time and memory, without side effects.

Covered: pickles that run code, and those that stay within what `weights_only` allows and do harm
all the same (sizes beyond what is stored, hashes that never end, sparse and quantised tensors);
archives that are bombs, lie about their members or name files elsewhere; damage by cuts and single
bits; YAML that unfolds; pictures in other formats, of huge or broken contents; names of files that
forge lines of a log.

Cannot apply: nothing is ever extracted from an archive, so that a member's name cannot choose where
it is written (that is held, all the same); tar files and arrays of objects are not read at all;
data sets come as pictures, or through torchvision with the checksums it knows.
"""

import hashlib
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.base import ROOT, TINY
from support.hostile import watched

from ddpm.data.decode import Unreadable, open_image, square, upright_size
from ddpm.runner.safe_io.plain import Refused, check_plain
from ddpm.runner.safe_io.torch_archive import check_archive, read_archive
from ddpm.runner.safe_io.yaml_json import read_json, read_yaml

# Zips by hand: zipfile writes no wrong ones


def member(name, data=b"", **lies):
    """What a zip says of a member; `lies` replaces any of it, but its true place and length."""
    header = {"method": 0, "flags": 0, "crc": zlib.crc32(data), "size": len(data), "attributes": 0}
    return {"name": name.encode(), "data": data, "offset": None} | header | lies


def zipped(members, *, count=None, comment=b"", prefix=b"", repeat=1):
    body, directory = prefix, b""
    for m in members:
        offset = len(body) if m["offset"] is None else m["offset"]
        common = struct.pack(
            "<5H3L2H", 20, m["flags"], m["method"], 0, 33, m["crc"], len(m["data"]),
            m["size"], len(m["name"]), 0,
        )  # fmt: skip
        if m["offset"] is None:
            body += b"PK\3\4" + common + m["name"] + m["data"]
        directory += b"PK\1\2" + struct.pack("<H", 20) + common
        directory += struct.pack("<3H2L", 0, 0, 0, m["attributes"], offset) + m["name"]
    directory *= repeat
    n = (len(members) * repeat if count is None else count) & 0xFFFF
    end = struct.pack("<4H2LH", 0, 0, n, n, len(directory), len(body), len(comment))
    return body + directory + b"PK\5\6" + end + comment


def archive(pickled, storages=(), **more):
    """What `torch.save` writes around a pickle."""
    data = [member(f"a/data/{key}", value) for key, value in dict(storages).items()]
    first = [member("a/data.pkl", pickled), member("a/byteorder", b"little")]
    return zipped([*first, *data, member("a/version", b"3\n")], **more)


# Pickles by hand, in the few steps that torch.save uses


def plain(value):
    """The steps that put a plain value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def storage(key="0", numel=4, kind="torch\nFloatStorage", location="cpu"):
    return (
        b"(" + plain("storage") + b"c" + kind.encode() + b"\n" + plain(key) + plain(location)
        + plain(numel) + b"tQ"
    )  # fmt: skip


NUMBERS = storage()
HOOKS = b"ccollections\nOrderedDict\n)R"


def tensor(shown=NUMBERS, offset=0, size=(4,), stride=(1,), hooks=HOOKS, last=b""):
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + shown + plain(offset) + plain(size)
        + plain(stride) + b"\x89" + hooks + last + b"tR"
    )  # fmt: skip


def whole(steps):
    """A pickle of {"x": what the steps leave}."""
    return b"\x80\x02}" + plain("x") + steps + b"s."


def call(name, *arguments):
    module, _, function = name.rpartition(".")
    steps = b"".join(plain(value) for value in arguments)
    return b"c" + f"{module}\n{function}\n".encode() + b"(" + steps + b"tR"


FOUR = {"0": struct.pack("<4f", 1, 2, 3, 4)}
TOUCH = "touch gotcha"
LAYERS = 200_000

GADGETS = {
    "os.system": call("os.system", TOUCH),
    "posix.system": call("posix.system", TOUCH),
    "nt.system": call("nt.system", TOUCH),
    "eval": call("builtins.eval", "open('gotcha', 'w')"),
    "exec": call("builtins.exec", "open('gotcha', 'w')"),
    "eval of Python 2": call("__builtin__.eval", "open('gotcha', 'w')"),
    "getattr": call("builtins.getattr", "", "join"),
    "open": call("builtins.open", "gotcha", "w"),
    "import": call("builtins.__import__", "antigravity"),
    "Popen": call("subprocess.Popen", TOUCH, 0, None, None, None, None, None, True, True),
    "check_output": call("subprocess.check_output", ["touch", "gotcha"]),
    "partial": call("functools.partial"),
    "attrgetter": call("operator.attrgetter", "a"),
    "runpy": call("runpy._run_code", TOUCH, {}),
    "code": call("code.InteractiveInterpreter"),
    "pip": call("pip.main", ["install", "x"]),
    "timeit": call("timeit.timeit", "open('gotcha', 'w')"),
    "a pickle within": call("_pickle.loads", b"cos\nsystem\n(S'touch gotcha'\ntR."),
    "torch's pickle within": call("torch.storage._load_from_bytes", b"\x80\x02}."),
    "torch.load": call("torch.serialization.load", "gotcha"),
    "torch.hub": call("torch.hub.load", "a/b", "c"),
    "a module": call("torch.nn.modules.linear.Linear", 4, 4),
    "numpy": call("numpy.core.multiarray.scalar"),
    "numpy's library": call("numpy.ctypeslib.load_library", "x", "."),
    "mkdir": call("os.mkdir", "gotcha"),
    "rmtree": call("shutil.rmtree", "."),
    "connect": call("socket.create_connection", ("localhost", 1)),
    "urlopen": call("urllib.request.urlopen", "http://localhost:1"),
    "browser": call("webbrowser.open", "http://localhost:1"),
    "a path of attributes": b"ctorch\nserialization.os.system\n(" + plain(TOUCH) + b"tR",
    "INST": b"(" + plain(TOUCH) + b"ios\nsystem\n",
    "OBJ": b"(cos\nsystem\n" + plain(TOUCH) + b"o",
    "STACK_GLOBAL": plain("os") + plain("system") + b"\x93" + plain((TOUCH,)) + b"R",
    "NEWOBJ": b"csubprocess\nPopen\n" + plain(([TOUCH],)) + b"\x81",
    "NEWOBJ_EX": b"csubprocess\nPopen\n" + plain(([TOUCH],)) + b"}\x92",
    "an extension": b"\x82\x01",
    "a persistent id of text": b"P0\n",
    "a name in lines": b"ctorch\nFloat\x1b[2KStorage\n",
}
# What `weights_only` lets through, or has to think about for too long.
CUNNING = {
    "bytearray of 100 GB": call("builtins.bytearray", 10**11),
    "a tensor of no numbers": call("torch.Tensor", 10**6, 10**6),
    "a storage of 1 TB": call("torch.storage.UntypedStorage", 10**12),
    "set": call("builtins.set", [1]),
    "Counter": call("collections.Counter", [1]),
    "complex": call("builtins.complex", 1, 2),
    "bytes": plain(b"abc"),
    "Size": call("torch.Size", [1]),
    "device": call("torch.device", "cpu"),
    "dtype": b"ctorch\nfloat32\n",
    "a class": b"ccollections\nOrderedDict\n",
    "a storage itself": storage(),
    "sparse": call("torch._utils._rebuild_sparse_tensor"),
    "quantised": call("torch._utils._rebuild_qtensor"),
    "on no device": call("torch._utils._rebuild_meta_tensor_no_storage"),
    "wrapper": call("torch._utils._rebuild_wrapper_subclass"),
    "of numpy": call("torch._utils._rebuild_device_tensor_from_numpy"),
    "of a type": call("torch._tensor._rebuild_from_type_v2"),
    "with a state": call("torch._utils._rebuild_parameter_with_state"),
    "old tensor": call("torch._utils._rebuild_tensor"),
    "beyond its storage": tensor(size=(5,)),
    "behind its storage": tensor(offset=1),
    "before its storage": tensor(offset=-1),
    "far behind": tensor(offset=2**47, size=(1,)),
    "strides beyond": tensor(size=(2, 2), stride=(3, 1)),
    "strides of 2^62": tensor(size=(2,), stride=(2**62,)),
    "backwards": tensor(offset=3, stride=(-1,)),
    "10^12 from one number": tensor(size=(10**12,), stride=(0,)),
    "10^12 in two": tensor(size=(10**6, 10**6), stride=(0, 0)),
    "each number twice": tensor(size=(2, 4), stride=(0, 1)),
    "a product of 2^64": tensor(size=(2**32, 2**32), stride=(0, 0)),
    "more strides than sizes": tensor(size=(4,), stride=(1, 1)),
    "a size of 4.0": tensor(size=(4.0,)),
    "a size of true": tensor(size=(True,)),
    "sizes in a list": tensor(size=[4]),
    "a hundred dimensions": tensor(size=(1,) * 100, stride=(1,) * 100),
    "hooks": tensor(hooks=HOOKS + plain(0) + plain("x") + b"s"),
    "hooks of none": tensor(hooks=b"N"),
    "metadata": tensor(last=plain({"neg": True})),
    "a storage longer than its member": tensor(storage(numel=1000), size=(1000,)),
    "a storage of 4 TB": tensor(storage(numel=10**12), size=(10**12,)),
    "a storage shorter than its member": tensor(storage(numel=2), size=(2,)),
    "a storage of less than none": tensor(storage(numel=-4), size=(0,)),
    "doubles of floats": tensor(storage(kind="torch\nDoubleStorage")),
    "a storage of no member": tensor(storage("9")),
    "a storage elsewhere": tensor(storage("../byteorder")),
    "a storage of another name": tensor(storage(0)),
    "complex storage": tensor(storage(kind="torch\nComplexFloatStorage", numel=2), size=(2,)),
    "quantised storage": tensor(storage(kind="torch\nQInt8Storage", numel=16), size=(16,)),
    "a parameter of text": b"ctorch._utils\n_rebuild_parameter\n(" + plain("x") + b"\x89N" + b"tR",
    "attributes": b"ccollections\nOrderedDict\n)R" + plain({"items": "x"}) + b"b",
    "attributes of a dict": plain({}) + plain({"items": "x"}) + b"b",
    "attributes of a tensor": tensor() + plain({"data": 1}) + b"b",
    "too deep": b"]" * 50 + b"a" * 49,
    "far too deep": b"]" * LAYERS + b"a" * (LAYERS - 1),
    "itself": b"]q\0h\0a",
    "2^100 by reference": b"]q\0" + b"h\0h\0\x86q\0" * 100,
    "a hash that takes for ever": b"}K\1q\0" + b"h\0h\0\x86q\0" * 100 + b"K\1s",
    "a hash too deep to end": b"}" + b")" + b"\x85" * LAYERS + b"K\1s",
    "too many values": b"](" + b"K\1" * 100_001 + b"e",
    "too many steps": b"N" * 500_000,
    "attributes without end": HOOKS + b"q\0" + b"}" + plain("_metadata") + b"](" + b"N" * 999
        + b"esq\1b" + b"h\0h\1b" * 1000,
    "a text of 4 GB": b"X\xff\xff\xff\xffabc",
    "a text of 70,000": plain("x" * 70_000),
    "a number of 800 bits": b"\x8a\x64" + b"\x7f" * 100,
    "a number of 2^31 bytes": b"\x8b\xff\xff\xff\x7fabc",
    "a bytearray": b"\x96" + struct.pack("<Q", 2**40),
    "bytes of 2^60": b"\x8e" + struct.pack("<Q", 2**60),
    "a key that is a float": b"}G" + b"\0" * 8 + b"Ns",
    "no mark": b"Nt",
    "nothing in memory": b"h\7",
    "no stack": b"a",
    "an unknown step": b"\xff",
}  # fmt: skip
BARE = {
    "no end": b"\x80\x02}",
    "nothing": b"",
    "another protocol": b"\x80\x04}.",
    "no value": b"\x80\x02.",
}
PICKLES = {f"gadget: {k}": whole(v) for k, v in GADGETS.items()}
PICKLES |= {f"cunning: {k}": whole(v) for k, v in CUNNING.items()} | BARE


def test_well_formed_forged_files_are_read(tmp_path):
    path = tmp_path / "good.pt"
    path.write_bytes(archive(whole(tensor(size=(2, 2), stride=(2, 1))), FOUR))
    assert read_archive(path)["x"].tolist() == [[1, 2], [3, 4]]
    check_archive(path)
    path.write_bytes(archive(whole(b"K\7r\xff\xff\xff\xff")))  # a memo of 2^32 places, but for once
    assert read_archive(path) == {"x": 7}


@pytest.mark.parametrize("pickled", PICKLES.values(), ids=PICKLES)
def test_a_hostile_pickle_is_refused_before_torch_sees_it(pickled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch has seen it"))
    Path("x.pt").write_bytes(archive(pickled, FOUR))
    with watched(), pytest.raises(Refused) as refusal:
        read_archive(Path("x.pt"))
    assert str(refusal.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.filterwarnings("ignore")
def test_weights_only_load_runs_no_refused_pickle(tmp_path, monkeypatch):
    """The second line: were the first one gone, `weights_only` would still run none of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddpm.runner.safe_io.torch_archive.vet_pickle", lambda records: None)
    for steps in GADGETS.values():
        Path("x.pt").write_bytes(archive(whole(steps), FOUR))
        with watched(), pytest.raises(Refused):
            read_archive(Path("x.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


class Reduced:
    def __reduce__(self):
        return os.mkdir, ("gotcha",)


def strange_values():
    eye = torch.eye(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "an object": Reduced(),
            "sparse": eye.to_sparse(),
            "sparse rows": eye.to_sparse_csr(),
            "quantised": torch.quantize_per_tensor(eye, 0.1, 0, torch.qint8),
            "complex": torch.zeros(2, dtype=torch.complex64),
            "without numbers": torch.zeros(2, device="meta"),
            "expanded": torch.zeros(1).expand(10**9),
            "conjugate": torch.zeros(2, dtype=torch.complex64).conj(),
            "a tensor with attributes": _with_attribute(),
            "a network": torch.nn.Linear(1, 1),
            "a path": Path("x"),
            "a set": {1},
            "bytes": b"x",
            "a Counter": Counter("x"),
            "a dtype": torch.float32,
            "a Size": torch.Size([1]),
            "a function": os.mkdir,
            "a number of 100 bits": 2**100,
            "a true key": {True: 1},
            "no key": {None: 1},
        }


def _with_attribute():
    made = torch.zeros(1)
    made.note = "x"
    return made


@pytest.mark.parametrize("value", strange_values().values(), ids=strange_values())
def test_torch_files_with_more_than_plain_data_are_refused(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "hydra-ddpm", "x": value}, "x.pt")
    with watched(), pytest.raises(Refused):
        read_archive(Path("x.pt"))
    assert not Path("gotcha").exists()


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(2).to_sparse(),
        torch.zeros(1).expand(10**9),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, device="meta"),
        torch.nn.Linear(1, 1),
        {1},
        {1.0: 1},
        {(1, 2): 1},
        b"x",
        1j,
        Counter(),
        type("Text", (str,), {})("x"),
        type("Tensor", (torch.Tensor,), {})(),
        2**65,
        "x" * 70_000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_data_has_few_types(value):
    with pytest.raises(Refused):
        check_plain({"a": [value]}, tensors=True)


def test_plain_data_are_plain_and_tensors_only_where_allowed():
    node = {"a": [1, 2.5, None, True, "x", (1, {2: 3})], 4: float("nan"), "s": 2**64 - 1}
    check_plain(node)
    check_plain(node | {"t": torch.zeros(3)[:0], "p": torch.zeros(2, 2).t()}, tensors=True)
    with pytest.raises(Refused, match="t: Tensor is not plain data"):
        check_plain({"t": torch.zeros(3)})


# Archives


def _blank(size):
    """A deflated member of zeros, without compressing them all: the same 64 MB again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    part = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return part * (size // 2**24) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()


GOOD = whole(tensor())
DATA = member("a/data/0", FOUR["0"])
PKL = member("a/data.pkl", GOOD)
BOMBS = {
    "10 GB of zeros": (
        lambda: zipped([PKL, member("a/data/0", _blank(10**10), method=8, size=10**10 % 2**32)]),
        "compressed",
    ),
    "a pickle of 1 GB": (
        lambda: zipped([member("a/data.pkl", _blank(10**9), method=8, size=10**9), DATA]),
        "compressed",
    ),
    "another size": (lambda: zipped([PKL, member("a/data/0", b"1234", size=10**9)]), "compressed"),
    "encrypted": (lambda: zipped([PKL, member("a/data/0", b"1234", flags=1)]), "encrypted"),
    "members in one place": (
        lambda: zipped([PKL, *(member(f"a/data/{i}", FOUR["0"], offset=0) for i in range(50))]),
        "overlap",
    ),
    "a member in another": (
        lambda: zipped([PKL, member("a/data/0", bytes(200)), member("a/x", bytes(50), offset=60)]),
        "overlap",
    ),
    "a member that says it is a folder": (
        # Its bytes are whole, but torch would give what was in the memory before.
        lambda: zipped([PKL, member("a/data/0", FOUR["0"], attributes=0x10)]),
        "folder",
    ),
    "a million members": (lambda: zipped([PKL], repeat=10**6), "directory"),
    "50,000 members of one name": (lambda: zipped([PKL], repeat=50_000), "one name"),
    "fewer than it says": (lambda: zipped([PKL], repeat=40_000, count=1), "one name"),
    "capitals": (lambda: zipped([PKL, member("a/DATA.PKL", b"x"), DATA]), "one name"),
    "a name out": (lambda: zipped([PKL, DATA, member("a/../../gotcha", b"x")]), "member"),
    "an absolute name": (lambda: zipped([member("/a/data.pkl", GOOD)]), "member"),
    "another root": (lambda: zipped([PKL, DATA, member("b/data.pkl", b"x")]), "member"),
    "a name that ends early": (lambda: zipped([PKL, member("a/data/0\0x", FOUR["0"])]), "member"),
    "an escape in a name": (lambda: zipped([PKL, member("b/\x1b[2K\n", b"x")]), r"\\x1b"),
    "no pickle": (lambda: zipped([member("a/x", b"x")]), "data.pkl"),
    "no members": (lambda: zipped([]), "not an archive"),
    "TorchScript": (lambda: zipped([PKL, DATA, member("a/constants.pkl", b"x")]), "TorchScript"),
    "code": (lambda: zipped([PKL, DATA, member("a/code/x.py", b"x")]), "TorchScript"),
    "a wrong checksum": (lambda: zipped([PKL, member("a/data/0", b"12", crc=1)]), "checksum"),
    "a comment": (lambda: archive(GOOD, FOUR, comment=b"x" * 30), "cut short"),
    "something before it": (lambda: b"#!/bin/sh\n" + archive(GOOD, FOUR), "not an archive"),
    "a zip before it": (lambda: archive(GOOD, FOUR) + archive(GOOD, FOUR), "directory"),
    "something behind it": (lambda: archive(GOOD, FOUR) + b"x", "cut short"),
    "a pickle of 17 MB": (lambda: archive(GOOD + bytes(17 * 2**20), FOUR), "larger than 16 MiB"),
    "an empty file": (lambda: b"", "empty"),
    "zeros": (lambda: bytes(10_000), "not an archive"),
    "HTML": (lambda: b"<!doctype html><title>Not found</title>", "not an archive"),
    "a configuration": (lambda: b"model:\n  _target_: os.system\n", "not an archive"),
    "a bare pickle": (lambda: b"\x80\x02cos\nsystem\n(X\1\0\0\0xtR.", "bare pickle"),
    "the start of a zip": (lambda: b"PK\3\4", "cut short"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_archives_not_written_by_torch_save_are_refused(bomb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, reason = bomb
    Path("x.pt").write_bytes(make())
    with watched(), pytest.raises(Refused, match=reason) as refusal:
        read_archive(Path("x.pt"))
    assert str(refusal.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    assert not (tmp_path.parent / "gotcha").exists()


def small_state():
    return {
        "format": "hydra-ddpm",
        "model": torch.nn.Linear(2, 2).state_dict(),
        "numbers": torch.arange(10),
        "hparams": {"model": {"width": 3}, "choices": {"job": "train"}},
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def test_flipped_bits_are_detected_or_have_no_effect(tmp_path):
    """A bit in every third byte: refused, or in an unread part of the zip, without effect."""
    path = tmp_path / "x.pt"
    state = small_state()
    torch.save(state, path)
    whole_file = path.read_bytes()
    inside = set()
    with zipfile.ZipFile(path) as file:
        for info in file.infolist():
            lengths = struct.unpack("<2H", whole_file[info.header_offset + 26 :][:4])
            start = info.header_offset + 30 + sum(lengths)
            inside.update(range(start, start + info.file_size))
    unnoticed = []
    for position in range(0, len(whole_file), 3):
        flipped = bytearray(whole_file)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            assert same(read_archive(path), state), position
            unnoticed.append(position)
        except Refused:
            continue
    assert not inside & set(unnoticed)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(small_state(), path)
    data = path.read_bytes()
    for length in {*range(0, len(data), 61), *range(len(data) - 100, len(data)), 1, 4, 22}:
        path.write_bytes(data[:length])
        with pytest.raises(Refused):
            read_archive(path)


def test_vanished_file_is_an_os_error(tmp_path):
    for read in (read_archive, check_archive, read_yaml):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")


def test_pipes_folders_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, Path("/dev/zero")):
        for read in (read_archive, read_yaml):
            with pytest.raises(Refused, match="not a file"):
                read(path)
        with pytest.raises(Unreadable, match="not a file"):
            open_image(path)


# YAML and JSON


def _bomb(levels, width):
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


def _merges(levels):
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, levels)]
    return "\n".join(lines)


YAMLS = {
    "10^6 by aliases": (_bomb(6, 10), "more than 100,000"),
    "10^30 by aliases": (_bomb(30, 10), "more than 100,000"),
    "2^40 by merges": (_merges(40), "line 2, column 10: << is not allowed"),
    "a merge": ("a: &a {x: 1}\nb:\n  <<: *a", "line 3, column 3: <<"),
    "contains itself": ("a: &a [1, *a]", "line 1, column 11: .*contains itself"),
    "a chain of aliases": (
        "a0: &a0 [1]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 200)),
        "nested deeper",
    ),
    "33 lists": ("[" * 33 + "]" * 33, "line 1, column 33: nested deeper"),
    "33 dicts": ("{a: " * 33 + "}" * 33, "line 1, column 129: nested deeper"),
    # A parser may have a limit of its own, and words of its own for it.
    "deep lists": ("[" * 100_000, "line 1, column "),
    "deep dicts": ("{a: " * 50_000, "line 1, column "),
    "deep blocks": ("- " * 100_000, "line 1, column "),
    "deep keys": ("? " * 100_000, "line 1, column "),
    "2 MB": ("a: 1\n" * 400_000, "larger than 1024 KiB"),
    "150,000 values": ("[" + "1," * 101_000 + "]", "more than 100,000"),
    "a tag of Python": ("x: !!python/object/apply:os.mkdir [gotcha]", "line 1, column 4: the tag"),
    "a name of Python": ("!!python/name:os.system", "the tag"),
    "a tag of its own": ("x: !boom 1", "the tag !boom"),
    "binary": ("x: !!binary aGVsbG8=", "the tag"),
    "a set": ("x: !!set {a}", "the tag"),
    "a date": ("x: 2026-01-01", "x: date is not plain data"),
    "no date": ("x: 2026-99-99", None),
    "a number of 5,000 digits": ("x: " + "9" * 5000, None),
    "a number of 200,000 bits": ("x: 0x" + "f" * 50_000, "bits"),
    "minutes without end": ("x: 1" + ":59" * 20_000, "bits"),
    "seconds without end": ("x: 1" + ":59" * 20_000 + ".5", None),
    "a text of 70,000": ("x: '" + "y" * 70_000 + "'", "70,000"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' twice"),
    "a key that is none": ("~: 1", "is not a string"),
    "a list as a key": ("? [a]\n: 1", "line 1, column 3"),
    "a tab": ("a:\n\t- b", "line 2, column "),
    "an open bracket": ("a: [1, 2\nb: 3", "line 2, column "),
    "two documents": ("a: 1\n---\nb: 2", "line 2, column "),
    "an unknown alias": ("a: *b", "line 1, column 4: "),
    "a control character": ("a: 1\nb: \x1b[2K", "line 2, column 4"),
    "no UTF-8": (b"a: 1\nb: caf\xe9", "line 2, column 7: not UTF-8"),
    "UTF-16": ("a: 1".encode("utf-16"), "line 1, column 1: not UTF-8"),
    "a checkpoint": (archive(GOOD, FOUR), "line 1"),
    "NUL": (b"a: \0", "line 1, column 4"),
}  # fmt: skip


@pytest.mark.parametrize("row", YAMLS.values(), ids=YAMLS)
def test_hostile_yaml_is_refused_in_one_line_that_says_where(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, reason = row
    Path("x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with watched(), pytest.raises(Refused, match=reason) as refusal:
        read_yaml(Path("x.yaml"))
    assert str(refusal.value).isprintable()
    assert not Path("gotcha").exists()


def test_ordinary_yaml_is_read(tmp_path):
    path = tmp_path / "x.yaml"
    text = "\ufeffa: &a [1, 2.5, null, true]\nb: {c: *a, d: *a}\n'<<': x\n3: é\n"
    path.write_text(text, encoding="utf-8")
    row = [1, 2.5, None, True]
    assert read_yaml(path) == {"a": row, "b": {"c": row, "d": row}, "<<": "x", 3: "é"}
    path.write_text("")
    assert read_yaml(path) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested deeper"),
        ("[" * 40 + "]" * 40, "nested deeper"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ("[" + "1," * 101_000 + "1]", "more than"),
        ('{"a": ', "line 1, column "),
        (b"\xff\xfe", "not UTF-8"),
        ("9" * 5000, None),
        ("1" * 100, "bits"),
        ('"' + "x" * 70_000 + '"', "70,000"),
        ("x" * 400_000, "more than 300,000"),
        ("", "line 1"),
    ],
    ids=range(11),
)
def test_hostile_json_is_refused(text, reason):
    with pytest.raises(Refused, match=reason) as refusal:
        read_json(text, 300_000)
    assert str(refusal.value).isprintable()
    assert str(read_json(b'{"a": [NaN, 1]}', 100)) == "{'a': [nan, 1]}"


# Pictures


def _png(width, height, *chunks, depth=8, colour=2):
    header = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    made = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks):
        made += struct.pack(">I", len(data)) + kind + data
        made += struct.pack(">I", zlib.crc32(kind + data))
    return made


def _saved(kind, size=(64, 48), **options):
    file = io.BytesIO()
    noise = hashlib.shake_128(b"x").digest(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, noise).save(file, kind, **options)
    return file.getvalue()


NO_PICTURE = "not a PNG, JPEG, WebP or BMP file"
ZEROS = zlib.compress(bytes(2**20))
PICTURES = {
    "60,000 squared": (_png(60_000, 60_000, (b"IDAT", ZEROS), (b"IEND", b"")), None),
    "2^31 wide": (_png(2**31 - 1, 2**31 - 1, (b"IDAT", ZEROS), (b"IEND", b"")), None),
    "10^9 in one row": (_png(10**9, 1, (b"IDAT", ZEROS), (b"IEND", b"")), None),
    "a BMP of 10^9": (
        b"BM" + struct.pack("<3I", 100, 0, 54) + struct.pack("<I2i2H6I", 40, 50_000, 50_000, 1, 24,
        0, 0, 0, 0, 0, 0) + bytes(46), None),
    "text of 200 MB": (
        _png(8, 8, (b"zTXt", b"a\0\0" + _blank(2**27).join([b"\x78\x9c", b""])), (b"IDAT", ZEROS)),
        None,
    ),
    "nothing in it": (_png(64, 64), None),
    "no size": (_png(0, 0, (b"IDAT", ZEROS), (b"IEND", b"")), None),
    "too little in it": (_png(9000, 64, (b"IDAT", zlib.compress(b"x")), (b"IEND", b"")), None),
    "a depth of 3": (_png(64, 64, (b"IDAT", ZEROS), depth=3), None),
    "half a PNG": (_saved("PNG")[:4000], None),
    "a PNG without its end": (_saved("PNG")[:5000], None),
    "the head of a PNG": (_saved("PNG")[:30], None),
    "half a JPEG": (_saved("JPEG")[:1500], None),
    "the head of a JPEG": (_saved("JPEG")[:300], None),
    "half a WebP": (_saved("WEBP", lossless=True)[:3000], None),
    "half a BMP": (_saved("BMP")[:3000], None),
    "GIF": (_saved("GIF"), NO_PICTURE),
    "TIFF": (_saved("TIFF"), NO_PICTURE),
    "ICO": (_saved("ICO"), NO_PICTURE),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), NO_PICTURE),
    "PPM": (_saved("PPM"), NO_PICTURE),
    "PCX": (_saved("PCX"), NO_PICTURE),
    "TGA": (_saved("TGA"), NO_PICTURE),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", NO_PICTURE),
    "PDF": (b"%PDF-1.4\n", NO_PICTURE),
    "FITS": (b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800), NO_PICTURE),
    "FPX": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000), NO_PICTURE),
    "PSD": (b"8BPS\0\1" + bytes(100), NO_PICTURE),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>x</script></svg>", NO_PICTURE),
    "WMF": (b"\xd7\xcd\xc6\x9a" + bytes(100), NO_PICTURE),
    "DDS": (b"DDS " + struct.pack("<I", 124) + bytes(200), NO_PICTURE),
    "XBM": (b"#define x_width 9\n#define x_height 9\nstatic char x[] = {", NO_PICTURE),
    "a pickle": (b"\x80\x02cos\nsystem\n(X\1\0\0\0xtR.", NO_PICTURE),
    "zeros": (bytes(1000), NO_PICTURE),
    "nothing at all": (b"", NO_PICTURE),
}  # fmt: skip


def _decode(path):
    upright_size(path)
    with open_image(path) as image:
        return square(
            image, channels=3, image_size=16, resize_mode="crop", center_crop=None, background=0,
            resample=Image.Resampling.BOX,
        )  # fmt: skip


@pytest.mark.parametrize("row", PICTURES.values(), ids=PICTURES)
def test_a_hostile_picture_is_named_and_refused(row, tmp_path):
    data, reason = row
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with watched(), pytest.raises(Unreadable, match=reason) as refusal:
        _decode(path)
    assert str(path) in str(refusal.value)
    assert str(refusal.value).isprintable()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data")
def test_a_jpeg_with_broken_metadata_is_the_same_picture(tmp_path):
    good = _saved("JPEG")
    (tmp_path / "good.jpg").write_bytes(good)
    expected = _decode(tmp_path / "good.jpg")
    tags = [
        b"Exif\0\0" + b"\xff" * 200,
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff" * 20,
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\x01\x03\0\1\0\0\0\xff\xff\0\0\x08\0\0\0",
        b"Exif\0\0",
    ]
    for tag in tags:
        path = tmp_path / "x.jpg"
        path.write_bytes(good[:2] + b"\xff\xe1" + struct.pack(">H", len(tag) + 2) + tag + good[2:])
        assert (_decode(path) == expected).all()


EVIL = "a\nwarning: all is well\x1b[2K\x1b[1A\u202e.png"


def test_control_characters_in_image_names_do_not_forge_lines(run, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / EVIL).write_bytes(b"no picture")
    with pytest.raises(Unreadable) as refusal:
        open_image(tmp_path / "pictures" / EVIL)
    assert str(refusal.value).isprintable()
    status, out, err = run(*TINY, "data=folder", "data.root=pictures", "data.image_size=16")
    assert status == 2
    assert "\x1b" not in out + err
    assert "\u202e" not in out + err
    assert not any(line.startswith("warning: all") for line in (out + err).splitlines())


# All at once, with little memory and time

CHILD = """
import json, resource, sys
from pathlib import Path
from PIL import Image
from ddpm.data.decode import open_image, square
from ddpm.runner.safe_io.torch_archive import read_archive
from ddpm.runner.safe_io.yaml_json import read_yaml

def picture(path):
    with open_image(path) as image:
        square(image, channels=3, image_size=16, resize_mode="crop", center_crop=None, background=0,
               resample=Image.Resampling.BOX)

resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = {".pt": read_archive, ".yaml": read_yaml, ".png": picture}
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read[path.suffix](path)
        found[path.name] = "read"
    except ValueError as error:
        found[path.name] = type(error).__name__
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"found": found, "torch": "torch" in sys.modules, "grown": grown}))
"""


@pytest.mark.slow
def test_hostile_files_are_refused_with_little_memory_and_without_torch(tmp_path):
    """A process that may not have 1 GB refuses each, before torch, which could do more, is in."""
    sources = {f"p{i}.pt": archive(data, FOUR) for i, data in enumerate(PICKLES.values())}
    sources |= {f"z{i}.pt": make() for i, (make, _) in enumerate(BOMBS.values())}
    sources |= {f"i{i}.png": data for i, (data, _) in enumerate(PICTURES.values())}
    texts = [text if isinstance(text, bytes) else text.encode() for text, _ in YAMLS.values()]
    sources |= {f"y{i}.yaml": text for i, text in enumerate(texts)}
    for name, data in sources.items():
        (tmp_path / name).write_bytes(data)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=200,  # against a file that is waited for, not a measure of speed
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert set(result["found"]) == set(sources)
    assert {name: kind for name, kind in result["found"].items() if kind == "read"} == {}
    assert set(result["found"].values()) == {"Refused", "Unreadable"}
    assert not result["torch"]
    assert result["grown"] < 250_000  # kB: no bomb went off
    assert {path.name for path in tmp_path.iterdir()} == set(sources)


# As a person meets them

FAKES = ("an empty file", "HTML", "a configuration", "10 GB of zeros", "an escape in a name")


@pytest.mark.slow
def test_files_that_are_not_checkpoints_are_refused_with_one_line(run, tmp_path):
    sources = {name: BOMBS[name][0]() for name in FAKES}
    sources["code"] = archive(whole(GADGETS["os.system"]))
    for name, data in sources.items():
        path = tmp_path / "x.pt"
        path.write_bytes(data)
        with watched():
            status, out, err = run("job=sample", f"checkpoint={path}", "tracker=local")
        assert status == 2, (name, out, err)
        assert len(err.splitlines()) == 1, err
        assert "checkpoint" in err
        assert "Traceback" not in err
        assert [p.name for p in tmp_path.iterdir() if p.name != "data"] == ["x.pt"], name
