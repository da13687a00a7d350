"""The lines of metrics.jsonl, the record of a run."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
