"""Readers of metrics.jsonl, the metrics of a run."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ddpm.runner.safe_io.plain import regular_size

FILE = "metrics.jsonl"
LOSS = "train/loss"
MAX_BYTES = 64 * 1024**2  # read from the end of a file by `values` and `NewLines`
_LARGEST = 2**1023  # integers above it cannot become floats


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without lines that a crash cut short."""
    return parse(Path(path).read_bytes().split(b"\n"))


def read_tail(path: Path, limit: int) -> list[bytes]:
    """The complete lines in the last `limit` bytes of a file.

    Raises:
        OSError: the file does not exist or cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - limit))
        lines = file.read(limit).split(b"\n")
    return lines if size <= limit else lines[1:]


class NewLines:
    """Reads a file to which lines are added, each line once."""

    def __init__(self) -> None:
        self._position = 0
        self._file: int | None = None  # its inode

    def __call__(self, path: Path) -> tuple[list[bytes], bool]:
        """The complete lines since the last call, and whether they replace the lines before them,
        as the file is another one or was begun anew.

        Raises:
            OSError: the file does not exist or cannot be read.
            Refused: it is not a regular file.
        """
        regular_size(path)
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            replaced = status.st_ino != self._file or status.st_size < self._position
            if replaced:
                self._file = status.st_ino
                self._position = max(0, status.st_size - MAX_BYTES)
            file.seek(self._position)
            content = file.read(MAX_BYTES)
        whole = content.rfind(b"\n") + 1  # the last line may still be written
        self._position += whole
        return content[:whole].split(b"\n")[:-1], replaced


def parse(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The lines that are JSON objects with a step. Only numbers are kept, and None, which is
    written for values that are not finite."""
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and is_number(row.get("step")):
            rows.append({k: v for k, v in row.items() if v is None or is_number(v)})
    return rows


def values(folder: Path, metric: str = LOSS, until: float = math.inf) -> list[float]:
    """The values of a metric that the run in `folder` has logged up to a step."""
    try:
        rows = parse(read_tail(folder / FILE, MAX_BYTES))
    except OSError:
        return []
    return [row[metric] for row in rows if row["step"] <= until and is_number(row.get(metric))]


def final(values: Sequence[float]) -> float | None:
    """The final value of a metric: the mean of the last tenth of its values, since single values
    are noisy. Reports, sweeps, searches and trackers all use this definition."""
    last = values[-max(1, len(values) // 10) :]
    return sum(last) / len(last) if last else None


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float can hold; booleans are not."""
    if isinstance(value, int):
        return not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST
    return isinstance(value, float)
