"""A search by Optuna: trials are jobs of a sweep, asked for when there is room for one.

The study lies in the sweep's folder. The same command goes on with it, trials that were stopped
first; several processes that say the same share it.
"""

import contextlib
import fcntl
import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from hydra.types import HydraContext
from omegaconf import DictConfig
from optuna.trial import Trial, TrialState

from ddpm import asked
from ddpm.errors import InputError, nearest
from ddpm.metrics import is_number, read_metrics
from ddpm.sweeps import launcher, record, space
from ddpm.sweeps.freeze import Job, freeze

LOOK_SECONDS = 1.0  # between two looks at what trials have logged
DIRECTIONS = ("minimize", "maximize")
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
        InputError: a knob has an impossible value, or the launcher is not one of ours.
    """
    _check("direction", direction, DIRECTIONS)
    _check("sampler", sampler, SAMPLERS)
    if type(n_trials) is not int or n_trials < 1:
        raise InputError(f"hydra.sweeper.n_trials={n_trials}: must be a number from 1.")
    if not hasattr(of, "run"):
        raise InputError("hydra/sweeper=optuna: works with hydra/launcher=serial, slots or slurm.")
    given = [f"{key}={value}" for key, value in (params or {}).items()]
    fixed, distributions = space.split([*given, *arguments])
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    launcher.prepare(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=folder.name,
        storage=_storage(storage, folder),
        pruner=_pruner(pruner, startup_trials, warmup_steps),
        direction=direction,
        load_if_exists=True,
    )
    # With the same seed again it would choose the same again.
    study.sampler = _sampler(sampler, seed if seed is None else seed + _begun(study))
    trials = Trials(
        study,
        distributions,
        lambda words, number: freeze(config, context, [[*fixed, *words]], number)[0],
        folder,
        metric,
        n_trials,
    )
    print(f"search   {_begun(study)} of {n_trials} trials there, in {folder}", flush=True)
    try:
        with trials.watched():
            of.run(trials)
    finally:
        _say_best(study, metric)


def _begun(study: optuna.Study) -> int:
    """How many trials there are, without those that somebody has only put on the list."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state != TrialState.WAITING for trial in trials)


def _check(name: str, value: Any, allowed: tuple[str, ...] | dict[str, Any]) -> None:
    if value not in allowed:
        raise InputError(
            f"hydra.sweeper.{name}={value}: must be one of {', '.join(allowed)}."
            f"{nearest(str(value), allowed)}"
        )


def _storage(given: str | None, folder: Path) -> Any:
    """A database by its URL, or a journal: a file that several processes may write."""
    if given is not None and "://" in given:
        return given
    from optuna.storages.journal import JournalFileBackend

    return optuna.storages.JournalStorage(
        JournalFileBackend(given or str(folder / "study.journal"))
    )


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


@dataclass
class Live:
    """A trial that this process answers for."""

    job: Job
    trial: Trial
    lock: int
    reported: int  # the step up to which Optuna knows what it has logged


@dataclass
class Trials:
    """A queue of jobs that Optuna makes up as results come in.

    Args:
        freeze: makes a job of words and a number.
        n_trials: of the study in all, whoever ran them.
    """

    study: optuna.Study
    distributions: dict[str, Any]
    freeze: Callable[[list[str], int], Job]
    folder: Path
    metric: str
    n_trials: int
    live: dict[int, Live] = field(default_factory=dict)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> Job | None:
        """A trial that was stopped before its end, or a new one."""
        with self._alone():
            found = self._left_over() or self._new()
        if found is None:
            return None
        trial, lock = found
        job = self.freeze(space.words(trial.params), trial.number)
        job.title = " ".join(space.words(trial.params))
        record.jobs.append(job)
        steps = self.study.trials[trial.number].intermediate_values
        with self.mutex:
            self.live[job.number] = Live(job, trial, lock, max(steps, default=-1))
        return job

    def _left_over(self) -> tuple[Trial, int] | None:
        """A trial without a result that no process answers for."""
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if (lock := self._lock(frozen.number)) is not None:
                return Trial(self.study, frozen._trial_id), lock
        return None

    def _new(self) -> tuple[Trial, int] | None:
        if _begun(self.study) >= self.n_trials:
            return None
        trial = self.study.ask(self.distributions)
        lock = self._lock(trial.number)
        assert lock is not None, "nobody else knows of it"
        return trial, lock

    def ended(self, job: Job) -> None:
        """Tell Optuna. What was stopped, or is worked on elsewhere, stays without a result."""
        with self.mutex:
            one = self.live.pop(job.number)
        self._report(one)
        state, value = job.state, self._value(job)
        if state == "done" and value is None:
            print(_not_logged(job, self.metric), flush=True)
        if state in ("done", "failed", "pruned"):
            good = state == "done" and value is not None
            other = TrialState.PRUNED if state == "pruned" else TrialState.FAIL
            self.study.tell(one.trial, value if good else None, None if good else other)
            shown = "-" if value is None else f"{value:.4g}"
            print(f"trial {job.number}  {state}, {self.metric} {shown}", flush=True)
        os.close(one.lock)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While open, trials without hope are asked to stop."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(LOOK_SECONDS):
                with self.mutex:
                    for one in self.live.values():
                        self._report(one)
                        if one.trial.should_prune() and one.job.folder is not None:
                            asked.to_stop(one.job.folder, "pruned")

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _report(self, one: Live) -> None:
        """Hand on what a trial has logged since the last time."""
        for row in self._rows(one.job):
            if row["step"] > one.reported:
                one.trial.report(row[self.metric], row["step"])
                one.reported = row["step"]

    def _rows(self, job: Job) -> list[dict[str, Any]]:
        if job.folder is None or not (job.folder / "metrics.jsonl").exists():
            return []
        rows = read_metrics(job.folder / "metrics.jsonl")
        return [row for row in rows if is_number(row.get(self.metric))]

    def _value(self, job: Job) -> float | None:
        """The mean of the last tenth of what was logged: single values are noise."""
        values = [row[self.metric] for row in self._rows(job)]
        last = values[-max(1, len(values) // 10) :]
        value = sum(last) / len(last) if last else math.nan
        return value if math.isfinite(value) else None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time asks for trials, so that there are not more than there may be."""
        file = os.open(self.folder / ".study.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _lock(self, number: int) -> int | None:
        """What shows that a process answers for a trial, freed however that ends; None: it has."""
        folder = self.folder / ".trials"
        folder.mkdir(exist_ok=True)
        file = os.open(folder / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file


def _not_logged(job: Job, metric: str) -> str:
    rows = read_metrics(job.folder / "metrics.jsonl") if job.folder else []
    names = sorted({name for row in rows for name in row} - {"step"})
    return f"hydra.sweeper.metric={metric}: the job logged none; it has {', '.join(names)}."


def _say_best(study: optuna.Study, metric: str) -> None:
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if done:
        best = study.best_trial
        chosen = " ".join(space.words(best.params))
        print(f"\nbest     trial {best.number}, {metric} {best.value:.4g}: {chosen}", flush=True)
