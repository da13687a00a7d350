"""The jobs of a search: Optuna makes one up whenever there is room for it, and is told its end."""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ddpm.runner.runs import stop_file
from ddpm.runner.runs.metrics_log import final, values
from ddpm.runner.safe_io.file_locks import Lock
from ddpm.runner.sweeps import callback
from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.naming import name_jobs
from ddpm.runner.sweeps.search import space
from ddpm.runner.sweeps.search import study as shared

LOOK_SECONDS = 1.0  # between two looks at what trials have logged
MISSES = 10  # draws of what runs already, until there is nothing more to begin
# What a look at a running trial may meet; the next look comes soon.
PASSING = (OSError, optuna.exceptions.OptunaError, json.JSONDecodeError)


@dataclass
class Live:
    """A trial that this process answers for."""

    job: Job
    trial: Trial
    lock: Lock
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
        name_jobs([job])
        callback.jobs.append(job)
        steps = self.study.trials[trial.number].intermediate_values
        with self.mutex:
            self.live[job.number] = Live(job, trial, lock, max(steps, default=-1))
        return job

    def _left_over(self) -> tuple[Trial, Lock] | None:
        """A trial without a result that no process answers for."""
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if (lock := shared.hold(self.folder, frozen.number)) is None:
                continue
            trial = Trial(self.study, frozen._trial_id)
            if self.study.trials[frozen.number].state != TrialState.RUNNING:
                lock.release()  # it got its result just now
            elif not space.holds(self.distributions, frozen.params):
                self._forget(trial)  # its process ended before all was chosen
                lock.release()
            else:
                return trial, lock
        return None

    def _new(self) -> tuple[Trial, Lock] | None:
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
        one.lock.release()

    def _missed(self, message: str) -> None:
        """A job has not logged the metric. If none ever has, the others are stopped, too."""
        if shared.logged_any(self.study):
            print(message, flush=True)
            return
        self.wrong = message
        with self.mutex:
            for one in self.live.values():
                if one.job.folder is not None:
                    stop_file.to_stop(one.job.folder)

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
            stop_file.to_stop(one.job.folder, "pruned")

    def _report(self, one: Live) -> None:
        """Hand on what a trial has logged since the last time."""
        for row in shared.rows(one.job.folder, self.metric):
            if row["step"] > one.reported:
                one.trial.report(row[self.metric], row["step"])
                one.reported = row["step"]

    def _value(self, job: Job) -> float | None:
        """The final value of the metric."""
        value = None if job.folder is None else final(values(job.folder, self.metric))
        return value if value is not None and math.isfinite(value) else None
