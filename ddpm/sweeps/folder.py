"""The folder of a sweep: one folder for each job, known by what its result depends on.

A job is found again by its configuration, not by its number: the same command goes on where it was,
and one with more values adds theirs. Each job's `config.yaml` is there before the first one runs.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ddpm import catalog, inherit, run_dir
from ddpm.errors import InputError
from ddpm.plan import Plan

OVER = ("done", "pruned")  # states of jobs that are not run again
_NAME = re.compile(r"[\w.+-]+")
# In what two jobs may differ and still come to the same result, beside inherit.INCIDENTAL.
_INCIDENTAL = (
    "choices",  # what they stand for is in the configuration
    *(f"job.{knob}" for knob in ("num_workers", "log_every", "save_every", "keep_checkpoints")),
    "hardware.timeout_minutes",
)


def of(name: str | None, now: str) -> str:
    """The folder of a sweep that is called `name`, or is to be found there; else named by time."""
    if name is None:
        return f"outputs/sweep/{now}"
    return name if "/" in name else f"outputs/sweep/{name}"


def check_name(name: Any) -> None:
    """See that a sweep can be called so.

    Raises:
        InputError: says how it can.
    """
    if name is None or (isinstance(name, str) and "/" in name):
        return
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith("."):
        raise InputError(
            f"sweep={name}: must be a name of letters, digits, '-', '_', '.', or a path with a '/'."
        )


def identity(config: dict[str, Any]) -> str:
    """What the result of a job depends on, as a digest. Keys that were not there yet when the
    configuration was written count as left alone."""
    keys = dict(inherit.flat(config))
    for key, default in catalog.defaults(config["choices"]).items():
        if not isinstance(default, dict) and "${" not in str(default):
            keys.setdefault(key, default)
    source = "checkpoint" if config.get("source") else None  # moved or not, it is the same one
    skip = [key for key in (*inherit.INCIDENTAL, *_INCIDENTAL, source) if key is not None]
    told = {key: value for key, value in keys.items() if not inherit.within(key, skip)}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


_read: dict[Path, tuple[tuple[int, int], str | None]] = {}  # a search asks for each trial anew


def _identity_in(file: Path) -> str | None:
    """What a configuration's result depends on; None where it is damaged: that job begins anew, in
    another folder."""
    file = file.absolute()
    stamp = file.stat().st_mtime_ns, file.stat().st_size
    if file not in _read or _read[file][0] != stamp:
        try:
            _read[file] = stamp, identity(run_dir.read_config(file.parent))
        except InputError:
            _read[file] = stamp, None
    return _read[file][1]


class SweepFolder:
    """A sweep's folder, open to one process at a time while it gives jobs their places.

    Args:
        path: the folder; made on entering.
        subdir: the name of the folder of the job with this number.
    """

    def __init__(self, path: Path, subdir: Callable[[int], str]) -> None:
        self.path, self.subdir = path, subdir
        self.known: dict[str, list[Path]] = {}

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be the folder of a sweep ({error.strerror})."
            ) from None
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        for file in sorted(self.path.glob("*/config.yaml"), key=_by_number):
            if (found := _identity_in(file)) is not None:
                self.known.setdefault(found, []).append(file.parent)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._lock)

    def take(self, plan: Plan, number: int) -> Plan:
        """The plan in the folder that is its own: the one it was begun in, or a new one.

        Several jobs that differ only in what the result does not depend on get one each.

        Raises:
            InputError: the folder's name is another job's, too.
        """
        places = self.known.setdefault(identity(plan.hparams), [])
        own = self.path / self.subdir(number)
        folder = own if own in places else places[0] if places else None
        hparams = plan.hparams
        if folder is None:
            folder = run_dir.create(self._free(number), hparams, unique=False)
        else:
            places.remove(folder)
            hparams = hparams | {"run_id": run_dir.read_config(folder)["run_id"]}
        return replace(
            plan,
            hparams=hparams,
            output_dir=folder,
            unique=False,
            resume=True,  # it has its configuration, and perhaps more
            checkpoint=folder if plan.trains else plan.checkpoint,
        )

    def refuse(self, words: list[str], number: int, message: str) -> Path:
        """Keep why a job has no configuration, in a folder of its own."""
        for file in self.path.glob("*/status.json"):
            told = run_dir.read_status(file.parent)
            if told.get("words") == words and not (file.parent / "config.yaml").exists():
                folder = file.parent
                break
        else:
            folder = self._free(number, unused=True)
            folder.mkdir(parents=True, exist_ok=True)
        run_dir.write_status(folder, "failed", words=words, error=message)
        return folder

    def _free(self, number: int, *, unused: bool = False) -> Path:
        """A folder that no job has yet: by this number, else by one that comes after all others.

        Args:
            unused: nor one that was refused.
        """
        used = {_number(file.parent) for file in self.path.glob("*/config.yaml")}
        for candidate in (*{number} - used, self._next(), self._next() + 1):
            folder = self.path / self.subdir(candidate)
            refused = (folder / "status.json").exists() and not (folder / "config.yaml").exists()
            if not (folder / "config.yaml").exists() and not (unused and refused):
                return folder
        raise InputError(
            f"hydra.sweep.subdir: {folder.name} would be the folder of several jobs; put "
            "${hydra:job.num} into it."
        )

    def _next(self) -> int:
        """A number above all that stand before the names of folders."""
        return 1 + max((_number(path) for path in self.path.iterdir()), default=-1)


def _by_number(file: Path) -> tuple[int, str]:
    return _number(file.parent), file.parent.name


def _number(folder: Path) -> int:
    """The number that a folder's name begins with; -1 without one."""
    digits = re.match(r"\d+", folder.name)
    return int(digits[0]) if digits else -1


def jobs(path: Path) -> list[Path]:
    """The folders of a sweep's jobs, in their order."""
    found = {
        file.parent for name in ("config.yaml", "status.json") for file in path.glob(f"*/{name}")
    }
    return sorted(found, key=lambda folder: (_number(folder), folder.name))
