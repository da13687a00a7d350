"""The folder of a sweep, with one folder per job, identified by everything its result depends on.

Jobs are found again by configuration, not by number: repeating a command resumes it, new values add
jobs. The `config.yaml` of every job exists before the first job runs.
"""

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
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


def identity(config: dict[str, Any]) -> str:
    """A digest of all keys that the result of a job depends on. A key that did not exist when the
    configuration was written counts as its default; for those in FORMER_VALUES, `_resumed` keeps
    what held then."""
    keys = {key: value for key, value in flatten(config) if value != {}}
    for key, default in catalog.defaults(config["choices"]).items():
        if not isinstance(default, dict) and "${" not in str(default):
            keys.setdefault(key, default)
        if key in old_names.FORMER_VALUES and keys.get(key) == default:
            del keys[key]  # as in the digests of earlier versions
    for part, then in old_names.FORMER_PARTS.items():
        if config.get(part) == then:
            places = (part, f"diffusion.{part}")
            keys = {key: value for key, value in keys.items() if not roles.within(key, places)}
    if config["choices"].get("job") == "interpolate" and "job.labels" in keys:
        keys["job.label"] = (keys.pop("job.labels") or [None])[0]  # the key's first form
    if keys.get("job.compile") == "auto":  # the default since `auto` exists; before, it was false
        keys["job.compile"] = False
    if config["choices"].get("job") == "sample" and not keys.get("job.compile"):
        keys.pop("job.compile", None)  # it had no such key
    if config["choices"].get("job") == "train" and keys.get("job.evaluate_every") is None:
        keys = {k: v for k, v in keys.items() if not k.startswith("job.evaluate_")}  # unused
    if config.get("source"):  # run and step identify the checkpoint; its file may have moved
        keys.pop("checkpoint", None)
    decisive = old_names.first_names(
        {k: v for k, v in keys.items() if roles.decides_result(k) or k in _ALWAYS_DEFAULTS}
    )
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


# File -> its stamp and identity: a search reads all of them again for each trial.
_identities: dict[Path, tuple[tuple[int, ...] | None, str | None]] = {}


def _stored_identity(file: Path) -> str | None:
    """The identity of a stored configuration; None if it is damaged: its job starts again in
    another folder.

    Raises:
        Unreachable: it cannot be read, perhaps for the moment.
    """
    file = file.absolute()
    stamp = atomic.stamp(file)
    if stamp is None or file not in _identities or _identities[file][0] != stamp:
        try:
            _identities[file] = stamp, identity(run_dir.read_config(file.parent))
        except listing.Unreachable:
            raise
        except InputError as error:
            logger.warning("%s The job starts again in another folder.", error)
            _identities[file] = stamp, None
    return _identities[file][1]


class SweepFolder:
    """A sweep's folder, held by one process at a time while it assigns folders to jobs.

    Args:
        path: the folder; created on entering.
        subdir: the name of a job's folder, from the job's number and choices.
        begins: whether a command starts with it: jobs refused earlier are then forgotten.
    """

    def __init__(self, path: Path, subdir: Callable[..., str], *, begins: bool = False) -> None:
        self.path, self.subdir, self.begins = path, subdir, begins
        self.unassigned: dict[str, list[Path]] = {}  # job folders by identity
        self._assigned: dict[str, Path] = {}  # by the whole configuration

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = file_locks.take(self.path / ".lock", wait=True)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be the folder of a sweep ({error.strerror})."
            ) from None
        try:
            self._clean()
            self._index_jobs()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _clean(self) -> None:
        """Remove half-made folders of killed processes, and records of refused jobs."""
        for leftover in listing.paths(self.path, ".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        for file in _job_files(self.path, "status.json") if self.begins else []:
            if (
                "words" in run_dir.read_status(file.parent)
                and len(listing.entries(file.parent)) == 1
            ):
                shutil.rmtree(file.parent, ignore_errors=True)

    def _index_jobs(self) -> None:
        """Read the identities of the jobs in the folder."""
        for file in sorted(_job_files(self.path, "config.yaml"), key=lambda f: _order(f.parent)):
            if (stored := _stored_identity(file)) is not None:
                self.unassigned.setdefault(stored, []).append(file.parent)

    def assign(self, plan: Plan, number: int) -> Plan:
        """The plan in its folder: the one where it began, or a new one.

        Each of several jobs with the same identity gets its own, as in a sweep of `num_workers`;
        jobs that are equal in every key share one.

        Raises:
            InputError: another job has the folder's name.
        """
        keys = {key: value for key, value in flatten(plan.hparams) if not roles.is_record(key)}
        whole = json.dumps(keys, sort_keys=True, default=str)
        if whole in self._assigned:
            return _resumed(plan, self._assigned[whole])
        assigned = self._assign(plan, number)
        self._assigned[whole] = assigned.output.path
        return assigned

    def _assign(self, plan: Plan, number: int) -> Plan:
        candidates = self.unassigned.setdefault(identity(plan.hparams), [])
        choices = plan.config["choices"]
        own = self.path / self.subdir(number, choices)
        folder = own if own in candidates else candidates[0] if candidates else None
        if folder is not None:
            candidates.remove(folder)
            return _resumed(plan, folder)
        new = run_dir.create(self._free_path(number, choices), plan.hparams, unique=False)
        return _with_folder(plan, new)

    def record_refusal(self, overrides: list[str], number: int, error: str) -> Path:
        """Record in a new folder why a job has no configuration."""
        folder = self._free_path(number, unused=True)
        folder.mkdir(parents=True, exist_ok=True)
        run_dir.write_status(folder, "failed", words=overrides, error=error)
        return folder

    def _free_path(
        self, number: int, choices: Mapping[str, Any] | None = None, *, unused: bool = False
    ) -> Path:
        """A path of no job: with this number, else with one above all others.

        Args:
            unused: nor of a refused job.
        """
        used = {_number(file.parent) for file in _job_files(self.path, "config.yaml")}
        highest = max((_number(path) for path in listing.paths(self.path)), default=-1)
        for candidate in (*{number} - used, highest + 1, highest + 2):
            folder = self.path / self.subdir(candidate, choices)
            taken = listing.exists(folder / "config.yaml")
            if not taken and not (unused and listing.exists(folder / "status.json")):
                return folder
        raise InputError(
            f"hydra.sweep.subdir: {folder.name} would be the folder of several jobs; add "
            "${hydra:job.num} to it."
        )


def resume_in(plan: Plan) -> Plan:
    """The plan in the folder that the command line names; it resumes if it began there.

    Raises:
        InputError: the folder belongs to another run.
    """
    file = plan.output.path / "config.yaml"
    if listing.exists(file) and _stored_identity(file) == identity(plan.hparams):
        return _resumed(plan, plan.output.path)
    run_dir.check_free(plan.output.path)
    return plan


def _resumed(plan: Plan, folder: Path) -> Plan:
    """The plan in the folder where it began, with the run id and W&B settings stored there."""
    stored = run_dir.read_config(folder)
    for settings in (plan.config, plan.hparams):
        wandb_settings.keep_stored(settings, stored, plan.unset_wandb_keys)
        old_names.keep_former_values(settings, stored)
    run_id = stored.get("run_id", plan.hparams["run_id"])
    return _with_folder(replace(plan, hparams=plan.hparams | {"run_id": run_id}), folder)


def _with_folder(plan: Plan, folder: Path) -> Plan:
    """The plan in a folder that holds its configuration, and perhaps a checkpoint."""
    return replace(
        plan,
        output=Output(folder, Mode.ASSIGNED),
        checkpoint=folder if plan.trains else plan.checkpoint,
    )


def remove_unused(path: Path) -> None:
    """Remove the folder of a sweep that was refused, if it holds nothing but the file that Hydra
    writes before the jobs are composed."""
    with contextlib.suppress(OSError, listing.Unreachable):  # read-only, or used by another process
        if [file.name for file in listing.paths(path)] == ["multirun.yaml"]:
            (path / "multirun.yaml").unlink()
            path.rmdir()


def locked_message(folder: Path | None) -> str:
    """The line about a job whose folder another process holds."""
    line = f"elsewhere  {folder} is being worked on by another process"
    remedy = "" if folder is None else run_dir.remedy(folder)
    return f"{line}. {remedy}" if remedy else line


def job_folders(path: Path) -> list[Path]:
    """The folders of a sweep's jobs, in order, including those that cannot be listed.

    Raises:
        Unreachable: the sweep's folder itself cannot be listed.
    """
    return sorted(filter(is_job_folder, listing.paths(path)), key=_order)


def is_job_folder(folder: Path) -> bool:
    """Whether a folder holds a job; True if it cannot be listed, as reading it gives the reason."""
    try:
        return any(listing.exists(folder / name) for name in ("config.yaml", "status.json"))
    except listing.Unreachable:
        return True


def _job_files(path: Path, name: str) -> list[Path]:
    """The files of this name in job folders; folders starting with a dot are incomplete.

    Raises:
        Unreachable: a folder cannot be listed; without this error its job would start again.
    """
    folders = [folder for folder in listing.paths(path) if not folder.name.startswith(".")]
    return [folder / name for folder in folders if listing.exists(folder / name)]


def _order(folder: Path) -> tuple[int, str]:
    return _number(folder), folder.name


def _number(folder: Path) -> int:
    """The number at the start of a folder's name, or -1."""
    digits = re.match(r"\d+", folder.name)
    return int(digits[0]) if digits else -1
