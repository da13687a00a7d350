"""Parquet tables with a column of encoded pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm.data.archive import (
    LABEL_COLUMN,
    MAX_COLUMNS,
    Archive,
    Label,
    Members,
    check_label_column,
    encoded,
    needed,
    refusal,
)
from ddpm.data.decode import Encoded
from ddpm.errors import InputError, listed, nearest, shown

ROWS = 64  # read at a time


class Parquet(Archive):
    """The pictures of a column, in the order of files and rows. Its values are encoded files, or
    `{bytes, path}` as Hugging Face writes them.

    Args:
        image_column: name of the column.
        label_column: of the classes, whole numbers or names; None, or no column of the default
            name: no classes.
    """

    name = "parquet"
    classes_in = " in the column data.label_column"
    endings = (".parquet",)

    def __init__(
        self,
        *,
        path: Any,
        image_column: str = "image",
        label_column: str | None = LABEL_COLUMN,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._look_in(path)
        self.image_column, self.label_column = image_column, label_column

    @property
    def settings(self) -> dict[str, Any]:
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        return super().settings | columns

    def labels(self) -> Iterator[Label]:
        for path in self.archives:
            if self.label_column not in _columns(self._open(path)):
                yield None
                continue
            for (rows,) in self._batches(path, [str(self.label_column)]):
                yield from map(_label, rows)

    def images(self, split: str) -> Members:
        paths = self.files(split)
        count = sum(self._open(path).metadata.num_rows for path in paths)
        if not count:
            raise InputError(f"data.path: {str(paths[0])!r} has no rows.")
        return Members(count, lambda: self._stream(paths))

    def _stream(self, paths: list[Path]) -> Iterator[tuple[Encoded, int]]:
        for path in paths:
            has_labels = self.class_names and self.label_column in _columns(self._open(path))
            columns = [self.image_column, *([str(self.label_column)] if has_labels else [])]
            row = 0
            for batch in self._batches(path, columns):
                pictures, labels = batch[0], batch[1] if has_labels else [None] * len(batch[0])
                for picture, label in zip(pictures, labels, strict=True):
                    content, name = encoded(picture, path, row)
                    yield Encoded(path / name, content), self.number(_label(label))
                    row += 1

    def _open(self, path: Path) -> Any:
        """The table of a file.

        Raises:
            InputError: it is damaged, has no such column, or pyarrow is not installed.
        """
        pq = needed("pyarrow.parquet", "parquet")
        try:
            table = pq.ParquetFile(path, pre_buffer=False, memory_map=False)
        except Exception as error:  # pyarrow's have no common base below it
            raise refusal(path, str(error)) from error
        if self.image_column not in (names := _columns(table)):
            raise InputError(
                f"data.image_column={self.image_column}: {str(path)!r} has no such column; it has "
                f"{listed([shown(name, 40) for name in names], MAX_COLUMNS)}."
                f"{nearest(self.image_column, names)}"
            )
        check_label_column(self.label_column, names, path)
        return table

    def _batches(self, path: Path, columns: list[str]) -> Iterator[list[list[Any]]]:
        """The columns of some rows at a time."""
        try:
            for batch in self._open(path).iter_batches(ROWS, columns=columns, use_threads=False):
                yield [batch.column(name).to_pylist() for name in columns]
        except InputError:
            raise
        except Exception as error:
            raise refusal(path, str(error)) from error


def _columns(table: Any) -> list[str]:
    return list(table.schema_arrow.names)


def _label(label: Any) -> Label:
    """A class, as a whole number or a name.

    Raises:
        InputError: it is something else.
    """
    if label is None or (isinstance(label, int | str) and not isinstance(label, bool)):
        return label
    raise InputError(f"data.label_column: holds {shown(label, 60)}, which is no class.")
