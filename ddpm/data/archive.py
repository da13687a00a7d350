"""What the data sets in archives and tables share: files to read from, members, labels."""

import importlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ddpm.data.decode import Encoded
from ddpm.data.holdout import in_split
from ddpm.data.pictures import Pictures
from ddpm.errors import InputError, listed, nearest, shown
from ddpm.runner.safe_io import atomic, listing

MAX_MEMBER = 2**28  # bytes of a picture in an archive
MAX_CLASSES = 100_000
MAX_FILES = 5  # named in a message

Label = int | str | None
LABEL_COLUMN = "label"  # the default of data.label_column
MAX_COLUMNS = 12  # that a message names


@dataclass(frozen=True)
class Members:
    """The pictures of a data set, read one after the other.

    Args:
        count: their number, for the progress bar.
        read: starts from the first one.
    """

    count: int
    read: Callable[[], Iterator[tuple[Encoded, int]]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Encoded, int]]:
        return self.read()


class Archive(Pictures):
    """Pictures in files that hold many of them.

    Subclasses set `key`, the name of the argument that says where the files are, and `endings`, and
    define `labels` and `images`. With `splits=named` the names of files begin with their split.
    """

    key = "path"
    endings: tuple[str, ...]

    where: Any  # the files

    def _look_in(self, where: Any) -> None:
        """Where the files are: called by the constructors of subclasses.

        Raises:
            InputError: nowhere.
        """
        if not where:
            raise InputError(f"data.{self.key}: must be set to {self._wanted}")
        self.where = where

    @property
    def _wanted(self) -> str:
        return f"a {' or '.join(self.endings)} file, a pattern, a list of them, or their folder"

    @cached_property
    def archives(self) -> list[Path]:
        """All files, of all splits; sets `root`, their common folder.

        Raises:
            InputError: there are none.
        """
        wheres = self.where if isinstance(self.where, list | tuple) else [self.where]
        found = [path for where in wheres for path in _expanded(str(where), self.endings)]
        if not found:
            raise InputError(
                f"data.{self.key}={shown(self.where, 200)}: no {' or '.join(self.endings)} file is "
                f"there; it must be {self._wanted}."
            )
        found = list(dict.fromkeys(path.absolute() for path in found))
        self.root = Path(os.path.commonpath([path.parent for path in found]))
        return found

    def files(self, split: str) -> list[Path]:
        archives = self.archives
        if not self.by_name:
            return archives
        chosen = [path for path in archives if in_split(self._name(path), split)]
        if not chosen:
            names = listed([repr(path.name) for path in archives], MAX_FILES)
            raise InputError(
                f"data.splits=named: no file of split={split} among {names}.\n"
                "Their names begin with train, val or test; or set data.splits=hash."
            )
        return chosen

    def has_split(self, split: str) -> bool:
        return any(in_split(self._name(path), split) for path in self.archives)

    def labels(self) -> Iterator[Label]:
        """The label of every picture of all splits, whole numbers or names; None: it has none."""
        raise NotImplementedError

    @cached_property
    def class_names(self) -> list[str] | None:
        """Names of the classes; kept beside the cache, as finding them reads all labels."""
        file = self.cache_file.with_suffix(".classes.json")
        with suppress(OSError, ValueError):
            kept = json.loads(file.read_text())
            if kept is None or isinstance(kept, list):
                return kept
        return classes(self.labels(), self.where)

    def _build(self) -> None:
        super()._build()
        file = self.cache_file.with_suffix(".classes.json")
        with suppress(OSError), atomic.replacing(file) as (new,):
            new.write_text(json.dumps(self.class_names))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.class_names or [])}

    def number(self, label: Label) -> int:
        """The class of a label."""
        return self._numbers.get(str(label), 0)

    def is_picture(self, name: str) -> bool:
        return name.lower().endswith(self.suffixes) and not is_hidden(name)

    def no_pictures(self, path: Path) -> InputError:
        return InputError(
            f"data.{self.key}: no pictures in {str(path)!r}. Supported are "
            f"{', '.join(self.suffixes)}."
        )


def classes(labels: Iterator[Label], where: Any) -> list[str] | None:
    """The classes of these labels: "0" to the highest number, or all names in order; None: no
    picture has one.

    Raises:
        InputError: some have none, or they are no classes.
    """
    found: set[Label] = set()
    for label in labels:
        found.add(label)
        if len(found) > MAX_CLASSES:
            raise InputError(f"data: {shown(where)} has more than {MAX_CLASSES:,} classes.")
    if found <= {None}:
        return None
    if None in found:
        raise InputError(
            f"data: some pictures of {shown(where)} have a label and others have none."
        )
    numbers = [label for label in found if isinstance(label, int)]
    if len(numbers) < len(found):
        return sorted({str(label) for label in found})
    if min(numbers) < 0 or max(numbers) >= MAX_CLASSES:
        bad = min(numbers) if min(numbers) < 0 else max(numbers)
        raise InputError(
            f"data: {shown(where)} has the label {bad}; labels are whole numbers from 0 to below "
            f"{MAX_CLASSES:,}."
        )
    return [str(number) for number in range(max(numbers) + 1)]


def is_hidden(name: str) -> bool:
    """Whether a member is left out, as hidden files in folders are: archives made on macOS have a
    `._0.png`, which is no picture, for each `0.png`."""
    return any(part.startswith(".") and part != ".." for part in PurePosixPath(name).parts)


def check_name(archive: Path, name: str) -> None:
    """Refuse the name of a member that would lead out of the archive.

    Raises:
        InputError: it is absolute or has `..` in it.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise refusal(archive, f"a member is named {shown(name, 100)!r}")


def refusal(archive: Path, reason: str) -> InputError:
    return InputError(f"data: cannot read {str(archive)!r} ({shown(reason, 200)}).")


def check_label_column(name: str | None, columns: Sequence[str], where: Any) -> None:
    """Check that the column of the labels exists, if it was named: the default may be missing.

    Raises:
        InputError: it does not exist.
    """
    if name not in (None, LABEL_COLUMN, *columns):
        raise InputError(
            f"data.label_column={shown(name)}: {shown(where, 200)} has no such column; it has "
            f"{listed([shown(column, 40) for column in columns], MAX_COLUMNS)}."
            f"{nearest(str(name), columns)}\nWithout labels: data.label_column=null"
        )


def encoded(picture: Any, path: Path, row: int) -> tuple[bytes, str]:
    """The bytes of a picture, and the name that its row has in messages.

    Raises:
        InputError: the row holds none.
    """
    name = None
    if isinstance(picture, dict):
        name, picture = picture.get("path"), picture.get("bytes")
    if not isinstance(picture, bytes) or len(picture) > MAX_MEMBER:
        raise refusal(path, f"row {row} holds no encoded picture")
    return picture, f"{row}{Path(str(name)).suffix if name else ''}"


def needed(module: str, extra: str) -> Any:
    """A library that is not always installed.

    Raises:
        InputError: it is not; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"data={extra}: needs {module.partition('.')[0]}: pip install -e '.[{extra}]'"
        ) from error


def _expanded(where: str, endings: Sequence[str]) -> list[Path]:
    """The files that a path, a pattern like `a-{000..009}.tar` or `*.tar`, or a folder names."""
    paths: list[Path] = []
    for pattern in _braces(os.path.expanduser(where)):
        path = Path(pattern)
        if path.is_dir():
            paths += [
                file for file in listing.below(path, "*") if file.name.endswith(tuple(endings))
            ]
        elif any(sign in path.name for sign in "*?["):
            paths += listing.paths(path.parent, path.name)
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"data: there is no file {str(path.absolute())!r}.")
    return paths


def _braces(pattern: str) -> list[str]:
    """`a-{08..11}` as a-08, a-09, a-10, a-11."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MAX_CLASSES:
        raise InputError(f"data.shards: {match[0]} must rise, by less than {MAX_CLASSES:,}.")
    numbers = (str(n).zfill(len(match[1])) for n in range(first, last + 1))
    return [pattern[: match.start()] + n + pattern[match.end() :] for n in numbers]
