"""A search by Optuna: trials are jobs of a sweep, asked for when there is room for one.

The study lies in the sweep's folder. The same command goes on with it, trials that were stopped
first, then those that failed; several processes that say the same share it.
"""

import contextlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

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
from ddpm.runner.sweeps.compose import freeze
from ddpm.runner.sweeps.launchers import base
from ddpm.runner.sweeps.search import space
from ddpm.runner.sweeps.search import study as shared
from ddpm.runner.sweeps.search.trials import Trials

DIRECTIONS = ("minimize", "maximize")
JOURNAL = "study.journal"
SAMPLERS = ("tpe", "random", "qmc")


def search(
    of: Any,
    config: DictConfig,
    context: HydraContext,
    arguments: list[str],
    *,
    metric: str,
    direction: str,
    n_trials: int,
    sampler: str,
    seed: int | None,
    pruner: str,
    startup_trials: int,
    warmup_steps: int,
    storage: str | None,
    params: dict[str, Any] | None,
) -> None:
    """Let Optuna choose until there are `n_trials`. conf/hydra/sweeper/optuna.yaml has the knobs.

    Args:
        of: the launcher that runs the trials.
        arguments: of the command line; those with several values are what is chosen from.

    Raises:
        InputError: a knob has an impossible value, the launcher is not one of ours, the study that
            is there is of something else, or the first trial has not logged the metric.
    """
    _check("direction", direction, DIRECTIONS)
    _check("sampler", sampler, SAMPLERS)
    if type(n_trials) is not int or n_trials < 1:
        raise InputError(f"hydra.sweeper.n_trials={n_trials}: must be a number from 1.")
    if not hasattr(of, "run"):
        raise InputError("hydra/sweeper=optuna: works with hydra/launcher=serial, slots or slurm.")
    pruning = _pruner(pruner, startup_trials, warmup_steps)
    given = [f"{key}={value}" for key, value in (params or {}).items()]
    fixed, distributions = space.split([*given, *arguments])
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    base.prepare(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with shared.alone(folder):
        here, first = shared.join(folder)
        if first:
            shared.cut_torn(folder / JOURNAL)
        study = _open(storage, folder, pruning, direction)
        space.check_same(study.get_trials(deepcopy=False), distributions, shared.OTHER)
        shared.agree(study, folder, metric, direction, fixed, distributions)
        if first:
            shared.again(study, distributions)
    # With the same seed again it would choose the same again.
    drawn = sum(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))
    study.sampler = _sampler(sampler, seed if seed is None else seed + drawn)
    trials = Trials(
        study,
        distributions,
        lambda words, number: freeze(config, context, [[*fixed, *words]], number)[0],
        folder,
        metric,
        n_trials,
    )
    print(
        f"search   {len(shared.begun(study))} of {n_trials} trials there, in {folder}", flush=True
    )
    try:
        with trials.watched():
            of.run(trials)
    finally:
        shared.say_best(study, metric)
        here.release()
    if trials.wrong is not None:
        raise InputError(trials.wrong)


def _check(name: str, value: Any, allowed: tuple[str, ...] | dict[str, Any]) -> None:
    if value not in allowed:
        raise InputError(
            f"hydra.sweeper.{name}={value}: must be one of {', '.join(allowed)}."
            f"{nearest(str(value), allowed)}"
        )


def _open(
    given: str | None, folder: Path, pruner: optuna.pruners.BasePruner, direction: str
) -> optuna.Study:
    """The study, made where there is none. In a storage of several it is called by its folder.

    Raises:
        InputError: the storage cannot be opened or read.
    """
    try:
        return optuna.create_study(
            study_name=folder.name if given is None else str(folder.resolve()),
            storage=_storage(given, folder),
            pruner=pruner,
            direction=direction,
            load_if_exists=True,
        )
    except Exception as error:  # each database has errors of its own
        if given is None and not isinstance(error, ValueError | LookupError):
            raise
        where = folder / JOURNAL if given is None else f"hydra.sweeper.storage={given}"
        reason = str(error).split("\n")[0]
        message = f"{where}: cannot be read as a study ({type(error).__name__}: {reason})."
        if given is not None and given.startswith("sqlite"):
            message += " SQLite needs a file system with locks; the default study needs none."
        raise InputError(re.sub(r"//[^/@\s]*@", "//***@", message)) from None


def _storage(given: str | None, folder: Path) -> Any:
    """A database by its URL, or a journal: a file that several processes may write."""
    if given is not None and "://" in given:
        return given
    return optuna.storages.JournalStorage(_Journal(given or str(folder / JOURNAL)))


class _Journal(JournalFileBackend):
    """Optuna's journal, for file systems without symbolic links or `fsync`, too."""

    def __init__(self, file: str) -> None:
        # Of its two locks a link is the default, and may be held by a script of the user's.
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
    """Whether a file system has symbolic links, as FAT, some SMB and FUSE have not."""
    link = folder / f".{secrets.token_hex(6)}.tmp"
    try:
        os.symlink("nothing", link)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        link.unlink()
    return True


def _sampler(name: str, seed: int | None) -> optuna.samplers.BaseSampler:
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # for trials side by side
    if name == "qmc":
        return optuna.samplers.QMCSampler(seed=seed, warn_independent_sampling=False)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(name: str, startup_trials: int, warmup_steps: int) -> optuna.pruners.BasePruner:
    made = {
        "median": lambda: optuna.pruners.MedianPruner(startup_trials, warmup_steps),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=max(1, warmup_steps)),
        "none": optuna.pruners.NopPruner,
    }
    _check("pruner", name, made)
    return made[name]()
