"""Reader of the archives that torch.save writes; anything else is refused."""

import hashlib
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

from ddpm.errors import one_line, shown
from ddpm.runner.safe_io.pickle_check import Records, vet_pickle
from ddpm.runner.safe_io.plain import Refused, check_plain, regular_size

MAX_PICKLE = 16 * 1024**2
MAX_MEMBERS = 100_000
MAX_DIRECTORY = 4 * 1024**2  # bytes of a zip's directory; a member takes about 65


def read_archive(path: Path) -> Any:
    """The content of an archive on the CPU: plain data and dense tensors.

    The directory, the checksums and each opcode of the pickle are checked before torch reads the
    file. `weights_only` alone would accept a `bytearray` of any size, tensors that exceed their
    storage, and tuples whose hash takes forever.

    Raises:
        OSError: the file does not exist or cannot be opened.
        Refused: it holds anything else, or is damaged.
    """
    size = regular_size(path)
    with open(path, "rb") as file:  # opened once: the checked file is the loaded one
        _vet_archive(file, size)
        state = _loaded(file)
    check_plain(state, tensors=True)
    return state


def read_known(path: Path, sha256: str) -> Any:
    """The content of one certain file that torch.save wrote, known by its SHA-256.

    It may have the format from before torch 1.6, which `read_archive` refuses.

    Raises:
        OSError: the file does not exist or cannot be opened.
        Refused: it is another file, of which nothing was interpreted, or none of torch.save.
    """
    regular_size(path)
    with open(path, "rb") as file:  # opened once: the checked file is the loaded one
        if (found := hashlib.file_digest(file, "sha256").hexdigest()) != sha256:
            raise Refused(f"its SHA-256 is {found}, not {sha256}")
        return _loaded(file)


def _loaded(file: IO[bytes]) -> Any:
    """What torch reads of a checked file."""
    import torch

    file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of damage that our checks missed, or not made by torch.save
        raise Refused(f"torch cannot load it ({one_line(error)})") from error


def check_archive(path: Path) -> None:
    """Make all checks of `read_archive` without loading the tensors.

    Raises:
        OSError, Refused: as `read_archive` does.
    """
    size = regular_size(path)
    with open(path, "rb") as file:
        _vet_archive(file, size)


def read_plain(path: Path) -> Any:
    """The plain data of an archive, with `WillBeTensor` in place of each tensor. Needs no torch and
    reads no tensors; their checksums are not checked.

    Raises:
        OSError, Refused: as `read_archive` does.
    """
    size = regular_size(path)
    with open(path, "rb") as file:
        return _vet_archive(file, size, whole=False)


def _vet_archive(file: IO[bytes], size: int, *, whole: bool = True) -> Any:
    try:
        return vet_pickle(_vet_zip(file, size, whole=whole))
    except Refused:
        raise
    except Exception as error:  # zipfile raises seven types of errors, a pickle any
        raise Refused(f"damaged ({one_line(error)})") from error


def _vet_zip(file: IO[bytes], size: int, *, whole: bool) -> Records:
    """Check that a zip is one of `torch.save`: unique, complete, uncompressed members with right
    checksums. torch has its own zip reader: anything that two readers may interpret differently
    is refused.
    """
    _vet_end(file, size)
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    if not members or len(members) > MAX_MEMBERS:
        raise Refused(f"an archive of {len(members):,} members")
    names = [member.filename for member in members]
    root = members[0].filename.split("/")[0]
    # torch ignores the case of names, and zipfile cuts a name at its first NUL.
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
        if member.external_attr & 0x10:  # torch would skip its bytes and return those of others
            raise Refused(f"an archive with a folder for a member ({name})")
        if member.header_offset < end:
            raise Refused(f"an archive whose members overlap ({name})")
        end = member.header_offset + 30 + len(member.filename) + member.file_size
    if end > archive.start_dir:
        raise Refused("an archive whose members overlap")
    if archive.getinfo(f"{root}/data.pkl").file_size > MAX_PICKLE:
        raise Refused(f"an archive whose data.pkl is larger than {MAX_PICKLE // 1024**2} MiB")
    if whole and (wrong := archive.testzip()) is not None:
        raise Refused(f"damaged (the checksum of {shown(wrong)} is wrong)")
    prefix = f"{root}/data/"
    storages = {
        m.filename.removeprefix(prefix): m.file_size
        for m in members
        if m.filename.startswith(prefix)
    }
    return Records(archive.read(f"{root}/data.pkl"), storages)


def _vet_end(file: IO[bytes], size: int) -> None:
    """Check that a zip spans the whole file and that its directory, which is read at once, has a
    sane size and lies where the end record says."""
    head = file.read(4)
    if size == 0:
        raise Refused("the file is empty")
    if head != b"PK\x03\x04":
        kind = "a bare pickle, " if head[:1] == b"\x80" else ""
        raise Refused(f"{kind}not an archive of torch.save")
    file.seek(max(0, size - 98))
    tail = file.read(98)
    if tail[-22:-18] != b"PK\x05\x06" or len(tail) < 98:
        raise Refused("damaged (cut short, or with data after its end)")
    *_, length, offset, comment = struct.unpack("<4s4H2LH", tail[-22:])
    behind = 22
    if tail[-42:-38] == b"PK\x06\x07":  # zip64, which torch always writes
        if tail[:4] != b"PK\x06\x06":
            raise Refused("damaged (its end is not where it should be)")
        length, offset = struct.unpack("<2Q", tail[40:56])
        position = struct.unpack("<Q", tail[-34:-26])[0]
        behind = 98 if position == size - 98 else 0
    if comment or offset + length + behind != size:
        raise Refused("damaged (its directory is not where it says)")
    if length > MAX_DIRECTORY:
        raise Refused(f"an archive whose directory has {length:,} bytes")
