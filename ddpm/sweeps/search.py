"""A search by Optuna: trials are jobs of a sweep, asked for when there is room for one.

The study lies in the sweep's folder. The same command goes on with it, trials that were stopped
first, then those that failed; several processes that say the same share it.
"""

import contextlib
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from hydra.types import HydraContext
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, Trial, TrialState

from ddpm import asked
from ddpm.errors import InputError, nearest
from ddpm.sweeps import launcher, record, space
from ddpm.sweeps import study as shared
from ddpm.sweeps.freeze import Job, freeze

LOOK_SECONDS = 1.0  # between two looks at what trials have logged
DIRECTIONS = ("minimize", "maximize")
JOURNAL = "study.journal"
SAMPLERS = ("tpe", "random", "qmc")
MISSES = 10  # draws of what runs already, until there is nothing more to begin
# What a look at a running trial may meet; the next look comes soon.
PASSING = (OSError, optuna.exceptions.OptunaError, json.JSONDecodeError)


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
    launcher.prepare(config)
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
        os.close(here)
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
        raise InputError(re.sub(r"//[^/@\s]*@", "//***@", message)) from None


def _storage(given: str | None, folder: Path) -> Any:
    """A database by its URL, or a journal: a file that several processes may write."""
    if given is not None and "://" in given:
        return given
    from optuna.storages.journal import JournalFileBackend

    return optuna.storages.JournalStorage(JournalFileBackend(given or str(folder / JOURNAL)))


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
        wrong: why the search cannot go on.
    """

    study: optuna.Study
    distributions: dict[str, Any]
    freeze: Callable[[list[str], int], Job]
    folder: Path
    metric: str
    n_trials: int
    wrong: str | None = None
    live: dict[int, Live] = field(default_factory=dict)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> Job | None:
        """A trial that was stopped before its end, or a new one."""
        if self.wrong is not None:
            return None
        with shared.alone(self.folder):
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
            if (lock := shared.hold(self.folder, frozen.number)) is None:
                continue
            trial = Trial(self.study, frozen._trial_id)
            if self.study.trials[frozen.number].state != TrialState.RUNNING:
                os.close(lock)  # it got its result just now
            elif not space.holds(self.distributions, frozen.params):
                self._forget(trial)  # its process ended before all was chosen
                os.close(lock)
            else:
                return trial, lock
        return None

    def _new(self) -> tuple[Trial, int] | None:
        """A trial of what was not tried; what was is told at once."""
        misses = 0
        while misses < MISSES and len(begun := shared.begun(self.study)) < self.n_trials:
            twins = {space.text(trial.params): trial for trial in reversed(begun)}
            if len(twins) == space.count(self.distributions):
                print(f"all {len(twins)} combinations were tried", flush=True)
                return None
            trial = self.study.ask(self.distributions)
            twin = twins.get(space.text(trial.params))
            if twin is None:
                lock = shared.hold(self.folder, trial.number)
                assert lock is not None, "nobody else knows of it"
                return trial, lock
            if twin.state != TrialState.RUNNING:
                self._same(trial, twin)
                continue
            misses += 1
            self._forget(trial)
            if space.count(self.distributions) is not None:
                self.study.enqueue_trial(space.untried(self.distributions, twins))
        return None

    def _forget(self, trial: Trial) -> None:
        """A trial that does not count."""
        self.study.tell(trial, state=TrialState.FAIL)
        shared.drop(self.study, [trial.number])

    def _same(self, trial: Trial, twin: FrozenTrial) -> None:
        """Tell what came of an earlier trial that chose the same."""
        done = twin.state == TrialState.COMPLETE
        self.study.tell(trial, twin.value if done else None, None if done else twin.state)
        value = f"{self.metric} {twin.value:.4g}, " if done else ""
        state = {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}.get(twin.state, "done")
        print(f"trial {trial.number}  {state}, {value}as trial {twin.number}: the same", flush=True)

    def ended(self, job: Job) -> None:
        """Tell Optuna. What was stopped, or is worked on elsewhere, stays without a result."""
        with self.mutex:
            one = self.live.pop(job.number)
        self._report(one)
        state, value = job.state, self._value(job)
        if state == "done" and not shared.rows(job.folder, self.metric):
            self._missed(shared.not_logged(job.folder, self.metric))
        if state in ("done", "failed", "pruned"):
            good = state == "done" and value is not None
            other = TrialState.PRUNED if state == "pruned" else TrialState.FAIL
            self.study.tell(one.trial, value if good else None, None if good else other)
            shown = "-" if value is None else f"{value:.4g}"
            print(f"trial {job.number}  {state}, {self.metric} {shown}", flush=True)
        os.close(one.lock)

    def _missed(self, message: str) -> None:
        """A job has not logged the metric. If none ever has, the others are stopped, too."""
        if shared.logged_any(self.study):
            print(message, flush=True)
            return
        self.wrong = message
        with self.mutex:
            for one in self.live.values():
                if one.job.folder is not None:
                    asked.to_stop(one.job.folder)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While open, trials without hope are asked to stop."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(LOOK_SECONDS):
                with self.mutex:
                    for one in self.live.values():
                        with contextlib.suppress(*PASSING):
                            self._look(one)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _look(self, one: Live) -> None:
        self._report(one)
        if one.trial.should_prune() and one.job.folder is not None:
            asked.to_stop(one.job.folder, "pruned")

    def _report(self, one: Live) -> None:
        """Hand on what a trial has logged since the last time."""
        for row in shared.rows(one.job.folder, self.metric):
            if row["step"] > one.reported:
                one.trial.report(row[self.metric], row["step"])
                one.reported = row["step"]

    def _value(self, job: Job) -> float | None:
        """The mean of the last tenth of what was logged: single values are noise."""
        values = [row[self.metric] for row in shared.rows(job.folder, self.metric)]
        last = values[-max(1, len(values) // 10) :]
        value = sum(last) / len(last) if last else math.nan
        return value if math.isfinite(value) else None
