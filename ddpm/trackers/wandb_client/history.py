"""The steps of a run that W&B has, so that a resumed run logs each step exactly once.

W&B's history is append-only, and a resumed run starts at a checkpoint, before its last log line.
Repeated steps give identical values, so only steps that W&B does not have yet are logged.
"""

import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpm.runner.safe_io import listing

_BLOCK = 32768  # a .wandb file is a LevelDB log: records in fragments within blocks
_FULL, _FIRST, _LAST = 1, 2, 4
_CAPTION = re.compile(r"step (\d+)")


@dataclass
class Seen:
    """The logged part of a run.

    Args:
        step: step of the last row of numbers; -1 if there is none.
        pictures: the last step of each image, by name.
        rows: W&B's number of the next row.
    """

    step: float = -1
    pictures: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row, or the summary of all rows."""
        for name, value in row.items():
            # a row holds {"samples/caption": ...}, a summary {"samples": {...}}
            if isinstance(value, Mapping):
                name, value = f"{name}/caption", value.get("caption")
            if name.endswith("/caption") and (step := _CAPTION.fullmatch(str(value))):
                name = name.removesuffix("/caption")
                self.pictures[name] = max(int(step[1]), self.pictures.get(name, -1))
        if isinstance(step := row.get("step"), int | float):
            self.step = max(self.step, step)


def caption(step: int) -> str:
    """The caption of an image, from which `Seen` reads its step."""
    return f"step {step}"


def in_files(run_dir: Path) -> Seen:
    """The steps that earlier starts of an offline run wrote; `wandb sync` uploads all of them."""
    seen = Seen()
    for path in _parts(run_dir, "*run-*"):
        for number, row in read_rows(path):
            seen.rows = max(seen.rows, number + 1)
            seen.add(row)
    return seen


def _parts(run_dir: Path, pattern: str) -> list[Path]:
    """The file of each start of a run, in the matching folders."""
    folders = listing.paths(run_dir / "wandb", pattern)
    return [file for folder in folders for file in listing.paths(folder, "run-*.wandb")]


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a run's file with W&B's numbers; a kill may have cut the last one short."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for data in _records(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            yield record.history.step.num, values


def _records(data: bytes) -> Iterator[bytes]:
    """The complete records of a log, up to the first damaged one."""
    position, record = 7, b""
    while position + 7 <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < 7:  # padding
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        fragment = data[position + 7 : position + 7 + length]
        if len(fragment) < length or zlib.crc32(bytes([kind]) + fragment) != checksum:
            return
        record = fragment if kind in (_FULL, _FIRST) else record + fragment
        position += 7 + length
        if kind in (_FULL, _LAST):
            yield record


def mark_synced(run_dir: Path) -> None:
    """Mark offline parts whose rows were logged online, so that `wandb sync` skips them."""
    for path in _parts(run_dir, "offline-run-*"):
        path.with_name(f"{path.name}.synced").touch()
