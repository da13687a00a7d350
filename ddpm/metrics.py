"""The lines of metrics.jsonl, the record of a run: read, and smoothed for the eye."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. A line torn by a crash, which is no JSON object, is left out."""
    return parse(Path(path).read_bytes().split(b"\n"))


def read_tail(path: Path, limit: int) -> list[bytes]:
    """The lines in the last `limit` bytes of a file, without one whose beginning is not in them.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - limit))
        lines = file.read(limit).split(b"\n")
    return lines if size <= limit else lines[1:]


def parse(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The rows among some lines: JSON objects with a step."""
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and is_number(row.get("step")):
            rows.append(row)
    return rows


def smooth(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Mean over a centred window of a twentieth of the values, narrower towards both ends."""
    half = max(1, len(values) // 40)
    i = np.arange(len(values))
    reach = np.minimum(half, np.minimum(i, i[::-1]))
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return (total[i + reach + 1] - total[i - reach]) / (2 * reach + 1)


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
