"""Reads what a W&B run wrote to its `.wandb` file, record by record."""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32768  # the file is a LevelDB log: records cut into fragments that lie in such blocks
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class RunFile:
    """A run as its file tells it."""

    run: Any = None  # the protocol's RunRecord: run_id, run_group, tags, job_type, git, ...
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    step_metrics: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None  # None: cut short
    preempting: bool = False


def run_files(run_dir: Path) -> list[Path]:
    """The files of a run folder's W&B runs, the oldest first."""
    return sorted(run_dir.glob("wandb/*run-*/run-*.wandb"))


def read_run(path: Path) -> RunFile:
    """Everything a test asks about."""
    result = RunFile()
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                result.run = record.run
                result.config.update(_values(record.run.config.update))
            case "config":
                result.config.update(_values(record.config.update))
            case "history":
                result.rows.append(_values(record.history.item))
            case "metric":
                name = record.metric.name or record.metric.glob_name
                result.step_metrics[name] = record.metric.step_metric
            case "preempting":
                result.preempting = True
            case "exit":
                result.exit_code = record.exit.exit_code
    return result


def records(path: Path) -> Iterator[Any]:
    """Every whole record of the file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, payload = 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:  # padding
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        fragment = data[position + 7 : position + 7 + length]
        if len(fragment) < length:
            return
        assert zlib.crc32(bytes([kind]) + fragment) == checksum
        payload = fragment if kind in (FULL, FIRST) else payload + fragment
        position += 7 + length
        if kind in (FULL, LAST):
            yield Record.FromString(payload)


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
