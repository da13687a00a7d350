"""Tar shards of pictures with labels beside them, as WebDataset writes them."""

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm.data.archive import (
    MAX_MEMBER,
    Archive,
    Label,
    Members,
    check_name,
    is_hidden,
    refusal,
)
from ddpm.data.decode import Encoded
from ddpm.errors import shown

MAX_LABEL = 2**20  # bytes of a label's file
LABELS = (".cls", ".json")
MAX_PADDING = 2**20  # zeros at the end of a shard


class WebDataset(Archive):
    """The pictures of uncompressed tar files, shard by shard, in the order of their members.

    Members that follow each other and share a name up to the first dot are a sample:
    `000001.png` with the number or name of the class in `000001.cls`, or in `000001.json` as
    `{"label": 3}`.
    """

    name = "webdataset"
    classes_in = f" in {' or '.join(LABELS)} files beside the pictures"
    key = "shards"
    endings = (".tar",)

    def __init__(self, *, shards: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._look_in(shards)

    def labels(self) -> Iterator[Label]:
        for path in self.archives:
            for _, _, label in self._samples(path, with_pictures=False):
                yield label

    def images(self, split: str) -> Members:
        paths = self.files(split)
        count = sum(1 for path in paths for _ in self._samples(path, with_pictures=False))
        if not count:
            raise self.no_pictures(paths[0])
        return Members(count, lambda: self._stream(paths))

    def _stream(self, paths: list[Path]) -> Iterator[tuple[Encoded, int]]:
        for path in paths:
            for name, content, label in self._samples(path, with_pictures=True):
                yield Encoded(path / name, content), self.number(label)

    def _samples(self, path: Path, *, with_pictures: bool) -> Iterator[tuple[str, bytes, Label]]:
        """Name, content (empty unless `with_pictures`) and label of each picture of a shard.

        Raises:
            InputError: the shard is cut short, damaged or hostile.
        """
        key, name, content, label = "", "", b"", None
        for member, archive in members(path):
            if is_hidden(member.name):
                continue
            folder, slash, base = member.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if folder + slash + stem != key:
                if name:
                    yield name, content, label
                key, name, content, label = folder + slash + stem, "", b"", None
            ending = f"{dot}{extension}".lower()
            if ending in LABELS:
                label = _label(path, member.name, _content(archive, member, path, MAX_LABEL), label)
            elif self.is_picture(member.name):
                if name:
                    raise refusal(path, f"the sample {key!r} has two pictures")
                name = member.name
                content = _content(archive, member, path, MAX_MEMBER) if with_pictures else b""
        if name:
            yield name, content, label


def members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The files of a shard, in constant memory.

    Raises:
        InputError: the shard is cut short, damaged or hostile.
    """
    try:
        with open(path, "rb") as end:
            size = end.seek(0, 2)
            end.seek(max(0, size - 1024))
            whole = size % 512 == 0 and not end.read().strip(b"\0")
        with tarfile.open(path, "r:") as archive:
            if not whole:
                raise refusal(path, "it is cut short")
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
                check_name(path, member.name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise refusal(path, f"{member.name!r} is a link or no file")
                yield member, archive
            with open(path, "rb") as rest:  # tarfile takes a damaged header for the end
                rest.seek(archive.offset)
                if rest.read(MAX_PADDING).strip(b"\0") or rest.read(1):
                    raise refusal(path, "damaged, or something follows its end")
    except tarfile.TarError as error:
        raise refusal(path, f"no uncompressed tar file, or cut short: {error}") from error


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, most: int) -> bytes:
    if member.size > most:
        raise refusal(path, f"{member.name!r} holds {member.size:,} bytes")
    file = archive.extractfile(member)
    content = file.read() if file is not None else b""
    if len(content) != member.size:
        raise refusal(path, f"it is cut short in {member.name!r}")
    return content


def _class(text: str) -> int | str:
    """The number or name of a class.

    Raises:
        ValueError: it is neither.
    """
    text = text.strip()
    if not text or not text.isprintable():
        raise ValueError
    return int(text) if re.fullmatch(r"[-+]?\d+", text, re.ASCII) else text


def _label(path: Path, name: str, content: bytes, before: Label) -> Label:
    """The label in a `.cls` or `.json` file; a `.json` file may hold other things instead."""
    try:
        if name.lower().endswith(".cls"):
            return _class(content.decode())
        found = json.loads(content)
        label = found.get("label") if isinstance(found, dict) else None
    except (ValueError, RecursionError) as error:
        raise refusal(path, f"{name!r} holds {shown(content[:40])}, which is no label") from error
    if label is None or isinstance(label, bool) or not isinstance(label, int | str):
        return before
    return label
