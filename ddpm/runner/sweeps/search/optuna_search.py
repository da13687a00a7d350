"""A search by Optuna: trials are jobs of a sweep, drawn when there is room for one.

The study is stored in the sweep's folder. The same command continues it: first trials that were
stopped, then failed ones, then new ones. Several processes with the same command share it.
"""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from hydra.types import HydraContext
from omegaconf import DictConfig
from optuna.storages.journal import (
    JournalFileBackend,
    JournalFileOpenLock,
    JournalFileSymlinkLock,
)
from optuna.trial import TrialState

from ddpm.errors import InputError, nearest
from ddpm.runner.safe_io import atomic
from ddpm.runner.sweeps.compose import Job, compose_jobs
from ddpm.runner.sweeps.launchers import base
from ddpm.runner.sweeps.launchers.job_queue import Runner
from ddpm.runner.sweeps.search import space
from ddpm.runner.sweeps.search import study as shared_study
from ddpm.runner.sweeps.search.trials import CLASSIFIED, EVALUATION, VALIDATED, Trials

DIRECTIONS = ("minimize", "maximize")
JOURNAL = "study.journal"
SAMPLERS = ("tpe", "random", "qmc")


def search(
    runner: Runner | None,
    config: DictConfig,
    context: HydraContext,
    arguments: list[str],
    *,
    metric: str,
    direction: Literal["minimize", "maximize"],
    n_trials: int,
    sampler: str,
    seed: int | None,
    pruner: str,
    startup_trials: int,
    warmup_steps: int,
    storage: str | None,
    params: dict[str, Any] | None,
) -> None:
    """Search until the study has `n_trials`. conf/hydra/sweeper/optuna.yaml explains the settings.

    Args:
        runner: of the trials; None for third-party launchers.
        arguments: of the command line; those with several values span the search space.

    Raises:
        InputError: a setting is invalid, the launcher is a third-party one, the existing study has
            another setup, or the first trial has not logged the metric.
    """
    _check("direction", direction, DIRECTIONS)
    _check("sampler", sampler, SAMPLERS)
    if type(n_trials) is not int or n_trials < 1:
        raise InputError(f"hydra.sweeper.n_trials={n_trials}: must be a number from 1.")
    _check_measured(metric, config, arguments)
    if runner is None:
        raise InputError("hydra/sweeper=optuna: works with hydra/launcher=serial, slots or slurm.")
    pruning = _pruner(pruner, startup_trials, warmup_steps)
    ranges = [f"{key}={value}" for key, value in (params or {}).items()]
    fixed, distributions = space.split([*ranges, *arguments])
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    base.prepare(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with shared_study.exclusive(folder):
        membership, is_first = shared_study.join(folder)
        if is_first:
            shared_study.truncate_torn_line(folder / JOURNAL)
        study = _open(storage, folder, pruning, direction)
        trials = study.get_trials(deepcopy=False)
        space.check_compatible(trials, distributions, shared_study.ADVICE)
        shared_study.check_setup(study, folder, metric, direction, fixed, distributions)
        if is_first:
            shared_study.retry_failed(study, distributions)
    study.sampler = _sampler(sampler, seed, study)

    def compose_trial(overrides: list[str], number: int) -> Job:
        return compose_jobs(config, context, [[*fixed, *overrides]], number)[0]

    queue = Trials(study, distributions, compose_trial, folder, metric, n_trials)
    existing = len(shared_study.counted_trials(study))
    print(f"search   {existing} of {n_trials} trials exist in {folder}", flush=True)
    try:
        with queue.pruning():
            runner.run(queue)
    finally:
        shared_study.print_best(study, metric)
        membership.release()
    if queue.error is not None:
        raise InputError(queue.error)


def _check_measured(metric: str, config: DictConfig, arguments: Sequence[str]) -> None:
    """Check that trials measure a score that is the metric: otherwise a whole run would pass before
    it is missed. What else they log is not known before."""
    if not metric.startswith(EVALUATION) or metric in {*VALIDATED, *CLASSIFIED}:
        return
    never = "evaluate_every" in config.job and config.job.evaluate_every is None
    if never and not any(word.startswith("job.evaluate_every=") for word in arguments):
        raise InputError(
            f"hydra.sweeper.metric={metric}: needs job.evaluate_every, after which it is measured. "
            f"Without it there are {', '.join(VALIDATED)} and the figures under train/."
        )


def _check(name: str, value: Any, allowed: tuple[str, ...] | dict[str, Any]) -> None:
    if value not in allowed:
        raise InputError(
            f"hydra.sweeper.{name}={value}: must be one of {', '.join(allowed)}."
            f"{nearest(str(value), allowed)}"
        )


def _open(
    url: str | None,
    folder: Path,
    pruner: optuna.pruners.BasePruner,
    direction: Literal["minimize", "maximize"],
) -> optuna.Study:
    """The study, created if necessary. In a storage of several studies, its name is its folder.

    Raises:
        InputError: the storage cannot be opened or read.
    """
    try:
        return optuna.create_study(
            study_name=folder.name if url is None else str(folder.resolve()),
            storage=_storage(url, folder),
            pruner=pruner,
            direction=direction,
            load_if_exists=True,
        )
    except Exception as error:  # each database has its own error classes
        if url is None and not isinstance(error, ValueError | LookupError):
            raise
        source = folder / JOURNAL if url is None else f"hydra.sweeper.storage={url}"
        reason = str(error).split("\n")[0]
        message = f"{source}: cannot be read as a study ({type(error).__name__}: {reason})."
        if url is not None and url.startswith("sqlite"):
            message += " SQLite needs a file system with locks; the default journal needs none."
        raise InputError(re.sub(r"//[^/@\s]*@", "//***@", message)) from None


def _storage(url: str | None, folder: Path) -> Any:
    """A database, or a journal: a file to which several processes may append."""
    if url is not None and "://" in url:
        return url
    return optuna.storages.JournalStorage(_Journal(url or str(folder / JOURNAL)))


class _Journal(JournalFileBackend):
    """Optuna's journal, also for file systems without symbolic links or `fsync`."""

    def __init__(self, file: str) -> None:
        # Optuna's default is the link; a user's script may hold that lock.
        lock = JournalFileSymlinkLock if _has_links(Path(file).parent) else JournalFileOpenLock
        self._own_file, self._own_lock = file, lock(file)
        super().__init__(file, self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
        self._own_lock.acquire()
        try:
            with open(self._own_file, "ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                atomic.sync(file.fileno())
        finally:
            self._own_lock.release()


def _has_links(folder: Path) -> bool:
    """Whether a file system has symbolic links; FAT, some SMB and FUSE do not."""
    link = folder / f".{secrets.token_hex(6)}.tmp"
    try:
        os.symlink("nothing", link)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        link.unlink()
    return True


def _sampler(name: str, seed: int | None, study: optuna.Study) -> optuna.samplers.BaseSampler:
    """A sampler; its seed is raised by the number of trials so far, for with the same seed a
    continued search would draw its first trials again."""
    if seed is not None:
        trials = study.get_trials(deepcopy=False)
        seed += sum(trial.state != TrialState.WAITING for trial in trials)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # for parallel trials
    if name == "qmc":
        return optuna.samplers.QMCSampler(seed=seed, warn_independent_sampling=False)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(name: str, startup_trials: int, warmup_steps: int) -> optuna.pruners.BasePruner:
    pruners = {
        "median": lambda: optuna.pruners.MedianPruner(startup_trials, warmup_steps),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=max(1, warmup_steps)),
        "none": optuna.pruners.NopPruner,
    }
    _check("pruner", name, pruners)
    return pruners[name]()
