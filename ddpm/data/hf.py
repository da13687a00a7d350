"""Data sets of Hugging Face's `datasets` library: of the Hub by name, or saved in a folder."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ddpm.data.archive import (
    LABEL_COLUMN,
    Archive,
    Label,
    Members,
    check_label_column,
    encoded,
    needed,
)
from ddpm.data.base import check
from ddpm.data.decode import Encoded
from ddpm.data.holdout import ALL, in_split, split_of
from ddpm.errors import InputError, nearest, one_line, shown
from ddpm.runner.safe_io import listing

SAVED = ("dataset_dict.json", "state.json")  # in folders that `save_to_disk` has written


class HuggingFace(Archive):
    """The pictures of a column, in the order of the rows.

    Args:
        path: a name on the Hub, or a folder: written by `save_to_disk`, or anything that
            `load_dataset` reads from a folder.
        revision: commit, tag or branch of the Hub; None: the newest at the first use.
        config: of a data set that has several; None: its only one.
        image_column, label_column: names of columns; without the second there are no classes.

    Without `splits=named` all rows of the data set's own split `train` (or its only one) are used;
    with it, its own splits train, validation and test.
    """

    name = "hf"
    classes_in = " in the column data.label_column"
    endings = (".arrow",)

    def __init__(
        self,
        *,
        path: Any,
        revision: str | None = None,
        config: str | None = None,
        image_column: str = "image",
        label_column: str | None = LABEL_COLUMN,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._look_in(path)
        check("path", path, isinstance(path, str), "a name on the Hub, a folder")
        self.revision, self.config = revision, config
        self.image_column, self.label_column = image_column, label_column

    @property
    def _wanted(self) -> str:
        return "the name of a data set, or its folder"

    @property
    def settings(self) -> dict[str, Any]:
        keys = ("revision", "config", "image_column", "label_column")
        return super().settings | {key: getattr(self, key) for key in keys}

    @cached_property
    def _tables(self) -> dict[str, Any]:
        """The data set's own splits.

        Raises:
            InputError: it cannot be read, or the library is not installed.
        """
        datasets = needed("datasets", "hf")
        folder = Path(os.path.expanduser(self.where))
        self.root = folder.absolute() if folder.is_dir() else Path(self.where)
        try:
            if self._is_saved:
                found = datasets.load_from_disk(str(folder))
            else:
                place = str(folder.absolute()) if folder.is_dir() else self.where
                datasets.disable_progress_bars()
                found = datasets.load_dataset(place, self.config, revision=self.revision)
        except Exception as error:  # of the library, the network and the files
            raise InputError(
                f"data.path={shown(self.where, 200)}: cannot be read as a data set of Hugging Face "
                f"({one_line(error)})."
            ) from error
        tables = dict(found) if isinstance(found, dict) else {"train": found}
        for table in tables.values():
            if self.image_column not in table.column_names:
                raise InputError(
                    f"data.image_column={self.image_column}: {shown(self.where)} has no such "
                    f"column; it has {', '.join(map(shown, table.column_names))}."
                    f"{nearest(self.image_column, table.column_names)}"
                )
        columns = [name for table in tables.values() for name in table.column_names]
        check_label_column(self.label_column, list(dict.fromkeys(columns)), self.where)
        return tables

    def _of_split(self, split: str) -> list[Any]:
        """The tables of a split."""
        tables = self._tables
        if not self.by_name:
            if len(tables) > 1 and "train" not in tables:
                raise InputError(
                    f"data.path={shown(self.where)}: its splits are {', '.join(tables)}, none of "
                    "them train; set data.splits=named if these are val and test."
                )
            return [tables.get("train", next(iter(tables.values())))]
        chosen = [table for name, table in tables.items() if in_split(name, split)]
        if not chosen:
            raise InputError(
                f"data.splits=named: {shown(self.where)} has no split={split}, only "
                f"{', '.join(tables)}; or set data.splits=hash."
            )
        return chosen

    def files(self, split: str) -> list[Path]:
        files = [Path(file["filename"]) for t in self._of_split(split) for file in t.cache_files]
        if self.root.is_dir() and not self._is_saved:  # pictures that the table only names
            files = listing.below(self.root, "*")
        return [file for file in files if file.is_file()]

    @property
    def _is_saved(self) -> bool:
        return any((self.root / name).is_file() for name in SAVED)

    def _name(self, path: Path) -> str:
        """The Hub's files lie in its own cache, below a folder of their version."""
        return super()._name(path) if path.is_relative_to(self.root) else path.name

    def has_split(self, split: str) -> bool:
        return any(split_of(name) == split for name in self._tables)

    @cached_property
    def class_names(self) -> list[str] | None:
        table = self._of_split(ALL if self.by_name else self.split)[0]
        feature = table.features.get(self.label_column) if self.label_column else None
        names = getattr(feature, "names", None)  # of a ClassLabel
        return list(names) if names is not None else super().class_names

    def labels(self) -> Iterator[Label]:
        for table in self._of_split(ALL if self.by_name else self.split):
            if self.label_column in table.column_names:
                yield from table[self.label_column]
            else:
                yield None

    def number(self, label: Label) -> int:
        """A `ClassLabel` is a number already."""
        if isinstance(label, int) and label < 0:
            raise InputError(f"data.label_column: {shown(self.where)} has the label {label}.")
        named = isinstance(label, int) and self.class_names is not None
        return int(label) if named else super().number(label)  # type: ignore[arg-type]

    def images(self, split: str) -> Members:
        tables = self._of_split(split)
        return Members(sum(map(len, tables)), lambda: self._stream(tables))

    def _stream(self, tables: list[Any]) -> Iterator[tuple[Encoded, int]]:
        datasets = needed("datasets", "hf")
        row, where = 0, Path(self.where)
        for table in tables:
            raw = table
            if isinstance(table.features[self.image_column], datasets.Image):
                raw = table.cast_column(self.image_column, datasets.Image(decode=False))
            has_label = self.label_column in table.column_names
            for entry in raw:
                picture = entry[self.image_column]
                if isinstance(picture, dict) and picture.get("bytes") is None:
                    picture = _from_file(picture, self.root)
                content, name = encoded(picture, where, row)
                label = entry[self.label_column] if has_label else None
                yield Encoded(self.root / name, content), self.number(label)
                row += 1


def _from_file(picture: dict[str, Any], root: Path) -> dict[str, Any]:
    """A picture that the table names by its file, which must lie below the data set's folder."""
    path = Path(str(picture.get("path"))).resolve()
    if not path.is_relative_to(root.resolve()):
        raise InputError(f"data.path: a row names the file {shown(path)}, outside of the folder.")
    return {"path": path.name, "bytes": path.read_bytes()}
