"""The folder of a sweep: one folder for each job, known by what its result depends on.

A job is found again by its configuration, not by its number: the same command goes on where it was,
and one with more values adds theirs. Each job's `config.yaml` is there before the first one runs.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ddpm.errors import InputError
from ddpm.runner import roles
from ddpm.runner.config import catalog, wandb_settings
from ddpm.runner.config.plan import Mode, Output, Plan
from ddpm.runner.runs import old_names, run_dir
from ddpm.runner.safe_io import atomic, file_locks, listing
from ddpm.runner.safe_io.tree import flatten

logger = logging.getLogger(__name__)

# Keys of one start: a stored configuration lacks them, but the digest always held their defaults.
_ALWAYS_DEFAULTS = ("output_dir", "resume", "allow_changes", "sweep")
OVER = ("done", "pruned")  # states of jobs that are not run again


def identity(config: dict[str, Any]) -> str:
    """A digest of all keys that the result of a job depends on. A key that did not exist when the
    configuration was written counts as its default."""
    keys = {key: value for key, value in flatten(config) if value != {}}
    for key, default in catalog.defaults(config["choices"]).items():
        if not isinstance(default, dict) and "${" not in str(default):
            keys.setdefault(key, default)
    if config["choices"].get("job") == "interpolate" and "job.labels" in keys:
        keys["job.label"] = (keys.pop("job.labels") or [None])[0]  # the key's first form
    if keys.get("job.compile") == "auto":  # the default; it was false before there was auto
        keys["job.compile"] = False
    if config.get("source"):  # run and step: the file itself may have been moved
        keys.pop("checkpoint", None)
    decisive = old_names.first_names(
        {k: v for k, v in keys.items() if roles.decides_result(k) or k in _ALWAYS_DEFAULTS}
    )
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


# A search asks for each trial anew.
_read: dict[Path, tuple[tuple[int, ...] | None, str | None]] = {}


def _identity_in(file: Path) -> str | None:
    """What a configuration's result depends on; None where it is damaged: that job begins anew, in
    another folder.

    Raises:
        Unreachable: it cannot be read, which may pass.
    """
    file = file.absolute()
    stamp = atomic.stamp(file)
    if stamp is None or file not in _read or _read[file][0] != stamp:
        try:
            _read[file] = stamp, identity(run_dir.read_config(file.parent))
        except listing.Unreachable:
            raise
        except InputError as error:
            logger.warning("%s The job begins anew in another folder.", error)
            _read[file] = stamp, None
    return _read[file][1]


class SweepFolder:
    """A sweep's folder, open to one process at a time while it gives jobs their places.

    Args:
        path: the folder; made on entering.
        subdir: the name of the folder of the job with this number.
        begins: whether a command begins with it: those jobs that were refused before are forgotten.
    """

    def __init__(self, path: Path, subdir: Callable[[int], str], *, begins: bool = False) -> None:
        self.path, self.subdir, self.begins = path, subdir, begins
        self.known: dict[str, list[Path]] = {}

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = file_locks.take(self.path / ".lock", wait=True)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be the folder of a sweep ({error.strerror})."
            ) from None
        try:
            self._take_stock()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def _take_stock(self) -> None:
        """Find the jobs that are there, after what is left of others was removed."""
        self._clean()
        for file in sorted(_files(self.path, "config.yaml"), key=_by_number):
            if (found := _identity_in(file)) is not None:
                self.known.setdefault(found, []).append(file.parent)

    def _clean(self) -> None:
        """Remove what a kill left half-made, and what is known of jobs that were refused."""
        for left in listing.paths(self.path, ".*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        for file in _files(self.path, "status.json") if self.begins else []:
            if (
                "words" in run_dir.read_status(file.parent)
                and len(listing.entries(file.parent)) == 1
            ):
                shutil.rmtree(file.parent, ignore_errors=True)

    def take(self, plan: Plan, number: int) -> Plan:
        """The plan in the folder that is its own: the one it was begun in, or a new one.

        Several jobs that differ only in what the result does not depend on get one each.

        Raises:
            InputError: the folder's name is another job's, too.
        """
        places = self.known.setdefault(identity(plan.hparams), [])
        own = self.path / self.subdir(number)
        folder = own if own in places else places[0] if places else None
        if folder is not None:
            places.remove(folder)
            return _begun(plan, folder)
        return _in(plan, run_dir.create(self._free(number), plan.hparams, unique=False))

    def refuse(self, words: list[str], number: int, message: str) -> Path:
        """Keep why a job has no configuration, in a folder of its own."""
        folder = self._free(number, unused=True)
        folder.mkdir(parents=True, exist_ok=True)
        run_dir.write_status(folder, "failed", words=words, error=message)
        return folder

    def _free(self, number: int, *, unused: bool = False) -> Path:
        """A folder that no job has yet: by this number, else by one that comes after all others.

        Args:
            unused: nor one that was refused.
        """
        used = {_number(file.parent) for file in _files(self.path, "config.yaml")}
        for candidate in (*{number} - used, self._next(), self._next() + 1):
            folder = self.path / self.subdir(candidate)
            taken = listing.exists(folder / "config.yaml")
            if not taken and not (unused and listing.exists(folder / "status.json")):
                return folder
        raise InputError(
            f"hydra.sweep.subdir: {folder.name} would be the folder of several jobs; put "
            "${hydra:job.num} into it."
        )

    def _next(self) -> int:
        """A number above all that stand before the names of folders."""
        return 1 + max((_number(path) for path in listing.paths(self.path)), default=-1)


def go_on(plan: Plan) -> Plan:
    """A plan whose folder was chosen by hand, to go on there if it is the plan's own.

    Raises:
        InputError: the folder is another run's.
    """
    file = plan.output.path / "config.yaml"
    if listing.exists(file) and _identity_in(file) == identity(plan.hparams):
        return _begun(plan, plan.output.path)
    run_dir.check_free(plan.output.path)
    return plan


def _begun(plan: Plan, folder: Path) -> Plan:
    """The plan in a folder where it was begun, as the run that it was then."""
    before = run_dir.read_config(folder)
    for settings in (plan.config, plan.hparams):
        wandb_settings.keep_stored(settings, before, plan.untyped)
    run_id = before.get("run_id", plan.hparams["run_id"])
    return _in(replace(plan, hparams=plan.hparams | {"run_id": run_id}), folder)


def _in(plan: Plan, folder: Path) -> Plan:
    """The plan in a folder that has its configuration, and perhaps more."""
    return replace(
        plan,
        output=Output(folder, Mode.ASSIGNED),
        checkpoint=folder if plan.trains else plan.checkpoint,
    )


def elsewhere(folder: Path) -> str:
    """What to say of a job whose folder is locked."""
    remedy = run_dir.remedy(folder)
    line = f"elsewhere  {folder} is being worked on by another process"
    return f"{line}. {remedy}" if remedy else line


def _files(path: Path, name: str) -> list[Path]:
    """The files of this name in the folders of jobs; what begins with a dot is not there yet.

    Raises:
        Unreachable: a folder cannot be listed; its job would begin anew.
    """
    folders = [folder for folder in listing.paths(path) if not folder.name.startswith(".")]
    return [folder / name for folder in folders if listing.exists(folder / name)]


def _by_number(file: Path) -> tuple[int, str]:
    return _number(file.parent), file.parent.name


def _number(folder: Path) -> int:
    """The number that a folder's name begins with; -1 without one."""
    digits = re.match(r"\d+", folder.name)
    return int(digits[0]) if digits else -1


def jobs(path: Path) -> list[Path]:
    """The folders of a sweep's jobs, in their order; also those that cannot be looked into.

    Raises:
        Unreachable: the sweep's folder itself cannot be listed.
    """
    found = [folder for folder in listing.paths(path) if is_job(folder)]
    return sorted(found, key=lambda folder: (_number(folder), folder.name))


def is_job(folder: Path) -> bool:
    """Whether a folder holds a job, or may hold one: reading it tells why it cannot be listed."""
    try:
        return any(listing.exists(folder / name) for name in ("config.yaml", "status.json"))
    except listing.Unreachable:
        return True
