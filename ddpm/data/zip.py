"""Zip files of pictures with labels in dataset.json, as EDM and StyleGAN write them."""

import json
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm.data.archive import MAX_MEMBER, Archive, Label, Members, check_name, refusal
from ddpm.data.decode import Encoded
from ddpm.data.holdout import ALL, in_split
from ddpm.errors import InputError, shown

LABELS = "dataset.json"
MAX_LABELS = 2**28  # bytes of it


class Zip(Archive):
    """The pictures of a zip file, in the order of their names.

    `dataset.json` in it may hold `{"labels": [["00000/img00000000.png", 6], ...]}`. With
    `splits=named` the first folder of each picture's name is its split.
    """

    name = "zip"
    classes_in = f" in {LABELS}"
    endings = (".zip",)

    def __init__(self, *, path: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._look_in(path)

    def files(self, split: str) -> list[Path]:
        return self.archives  # the splits lie within

    def has_split(self, split: str) -> bool:
        return any(self._members(archive, split) for archive in self._opened())

    def _opened(self) -> Iterator[zipfile.ZipFile]:
        for path in self.archives:
            with opened(path) as archive:
                yield archive

    def _members(self, archive: zipfile.ZipFile, split: str) -> list[zipfile.ZipInfo]:
        """The pictures of a split, by name."""
        infos = [info for info in archive.infolist() if self.is_picture(info.filename)]
        infos = [info for info in infos if not self.by_name or in_split(info.filename, split)]
        return sorted(infos, key=lambda info: info.filename)

    def labels(self) -> Iterator[Label]:
        for archive in self._opened():
            found = labels_of(archive)
            for info in self._members(archive, ALL):
                yield found.get(info.filename)

    def images(self, split: str) -> Members:
        if not (count := sum(len(self._members(archive, split)) for archive in self._opened())):
            raise self.no_pictures(self.archives[0])
        return Members(count, lambda: self._stream(split))

    def _stream(self, split: str) -> Iterator[tuple[Encoded, int]]:
        for archive in self._opened():
            path = Path(str(archive.filename))
            found = labels_of(archive) if self.class_names else {}
            for info in self._members(archive, split):
                content, label = member(archive, info, path), found.get(info.filename)
                yield Encoded(path / info.filename, content), self.number(label)


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip file whose members may be read.

    Raises:
        InputError: it is damaged or hostile.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive, path)
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise refusal(path, str(error) or "cut short") from error


def _check(archive: zipfile.ZipFile, path: Path) -> None:
    infos = archive.infolist()
    names = set()
    for info in infos:
        check_name(path, info.filename)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise refusal(path, f"{info.filename!r} is a link")
        if info.filename in names:
            raise refusal(path, f"two members are named {info.filename!r}")
        if info.flag_bits & 1:
            raise refusal(path, f"{info.filename!r} is encrypted")
        names.add(info.filename)
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        raise refusal(path, "its members overlap")


def member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, most: int = MAX_MEMBER
) -> bytes:
    """The content of a member.

    Raises:
        InputError: it is damaged or too large.
    """
    if info.file_size > most:
        raise refusal(path, f"{info.filename!r} holds {info.file_size:,} bytes")
    try:
        return archive.read(info)
    except Exception as error:  # of zipfile and the decompressors
        raise refusal(path, f"{info.filename!r}: {str(error) or 'cut short'}") from error


def labels_of(archive: zipfile.ZipFile) -> dict[str, Label]:
    """The labels in dataset.json, by the names of the pictures.

    Raises:
        InputError: it is damaged, or a label is no class.
    """
    path = Path(str(archive.filename))
    if LABELS not in archive.namelist():
        return {}
    try:
        content = json.loads(member(archive, archive.getinfo(LABELS), path, MAX_LABELS))
        labels = content.get("labels") or []
        pairs = {str(name).replace("\\", "/"): label for name, label in labels}
    except InputError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise refusal(path, f"{LABELS} is no list of names and labels") from error
    for name, label in pairs.items():
        if type(label) is not int:
            raise refusal(path, f"{LABELS}: {shown(name, 60)} has the label {shown(label, 40)}")
    return pairs
