"""The jobs of a search: Optuna draws a trial whenever there is room, and gets its result."""

import contextlib
import json
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ddpm.errors import InputError, nearest
from ddpm.runner.runs import requests, scores
from ddpm.runner.runs.metrics_log import (
    FILE,
    NewLines,
    final,
    is_number,
    parse,
    values,
)
from ddpm.runner.safe_io.file_locks import Lock
from ddpm.runner.sweeps import callback
from ddpm.runner.sweeps.compose import Job, name_jobs
from ddpm.runner.sweeps.search import space
from ddpm.runner.sweeps.search import study as shared_study

TRAINING = "train/"  # with which the figures of training begin
EVALUATION = "eval/"  # and those of evaluations
VALIDATED = ("eval/loss", "eval/loss_raw", "eval/loss_gap")  # of job.validate_every
CLASSIFIED = ("eval/accuracy", "eval/accuracy_gap")  # and of a classifier's
# Those that a line may lack: of steps that were skipped, or of quarters without any t.
SOMETIMES = {"train/loss", "train/grad_norm", *(f"train/loss_q{i}" for i in range(1, 5))}
POLL_SECONDS = 1.0  # between two reads of the running trials' logs
MAX_REDRAWS = 10  # draws that equal running trials, until no more trial is started
# Errors while polling a running trial that may pass until the next poll.
TRANSIENT = (OSError, optuna.exceptions.OptunaError, json.JSONDecodeError)


@dataclass
class LiveTrial:
    """A trial that this process runs.

    Args:
        reported: the last step whose value Optuna has.
        waiting: rows of its log that Optuna may not have.
        logged: names of the figures of training in its log.
    """

    job: Job
    trial: Trial
    lock: Lock
    reported: int
    waiting: deque[dict[str, Any]] = field(default_factory=deque)
    new_lines: NewLines = field(default_factory=NewLines)
    logged: set[str] = field(default_factory=set)


@dataclass
class Trials:
    """A queue of jobs that Optuna draws as results come in.

    Args:
        compose: composes a job from overrides and a number.
        n_trials: of the study in total, over all processes.
        error: why the search cannot continue.
    """

    study: optuna.Study
    distributions: dict[str, Any]
    compose: Callable[[list[str], int], Job]
    folder: Path
    metric: str
    n_trials: int
    error: str | None = None
    live: dict[int, LiveTrial] = field(default_factory=dict)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> Job | None:
        """An interrupted trial, or a new one."""
        if self.error is not None:
            return None
        with shared_study.exclusive(self.folder):
            claimed = self._interrupted() or self._new()
        if claimed is None:
            return None
        trial, lock = claimed
        job = self.compose(space.overrides(trial.params), trial.number)
        job.title = " ".join(space.overrides(trial.params))
        name_jobs([job])
        callback.jobs.append(job)
        steps = self.study.trials[trial.number].intermediate_values
        with self.mutex:
            self.live[job.number] = LiveTrial(job, trial, lock, max(steps, default=-1))
        return job

    def _interrupted(self) -> tuple[Trial, Lock] | None:
        """A trial without a result that no process runs."""
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if (lock := shared_study.claim_trial(self.folder, frozen.number)) is None:
                continue
            trial = Trial(self.study, frozen._trial_id)
            if self.study.trials[frozen.number].state != TrialState.RUNNING:
                lock.release()  # it got its result just now
            elif not space.allows(self.distributions, frozen.params):
                self._discard(trial)  # its process ended before all parameters were drawn
                lock.release()
            else:
                return trial, lock
        return None

    def _new(self) -> tuple[Trial, Lock] | None:
        """A trial with new parameters; a trial that equals an ended one gets its result at once."""
        redraws = 0
        total = space.num_combinations(self.distributions)
        while redraws < MAX_REDRAWS:
            counted = shared_study.counted_trials(self.study)
            if len(counted) >= self.n_trials:
                break
            by_identity = {space.identity(trial.params): trial for trial in reversed(counted)}
            if len(by_identity) == total:
                print(f"all {total} combinations were tried", flush=True)
                break
            trial = self.study.ask(self.distributions)
            twin = by_identity.get(space.identity(trial.params))
            if twin is None:
                lock = shared_study.claim_trial(self.folder, trial.number)
                assert lock is not None, "no other process knows this trial"
                return trial, lock
            if twin.state != TrialState.RUNNING:
                self._copy_result(trial, twin)
                continue
            redraws += 1
            self._discard(trial)
            if total is not None and (params := space.untried(self.distributions, by_identity)):
                self.study.enqueue_trial(params)
        return None

    def _discard(self, trial: Trial) -> None:
        """End a trial that does not count."""
        self.study.tell(trial, state=TrialState.FAIL)
        shared_study.discount(self.study, [trial.number])

    def _copy_result(self, trial: Trial, twin: FrozenTrial) -> None:
        """Give a trial the result of an earlier one with the same parameters."""
        done = twin.state == TrialState.COMPLETE
        self.study.tell(trial, twin.value if done else None, None if done else twin.state)
        value = f"{self.metric} {twin.value:.4g}, " if done else ""
        state = {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}.get(twin.state, "done")
        print(f"trial {trial.number}  {state}, {value}same as trial {twin.number}", flush=True)

    def ended(self, job: Job) -> None:
        """Give Optuna the result. A job that was stopped, or runs elsewhere, has none yet."""
        with self.mutex:
            live = self.live.pop(job.number)
        self._report(live)
        logged = [] if job.folder is None else values(job.folder, self.metric)
        state, value = job.state, _finite(final(logged))
        if state == "done" and not logged:
            message = shared_study.missing_metric(job.folder, self.metric)
            if shared_study.has_values(self.study):
                print(message, flush=True)
            else:  # none ever has: the others will not either
                self._refuse(message)
        elif state == "done" and (unlike := self._measured_otherwise(job)):
            state, value = "failed", None
            self._refuse(unlike)
        if state in ("done", "failed", "pruned"):
            complete = state == "done" and value is not None
            other = TrialState.PRUNED if state == "pruned" else TrialState.FAIL
            self.study.tell(live.trial, value if complete else None, None if complete else other)
            text = "-" if value is None else f"{value:.4g}"
            print(f"trial {job.number}  {state}, {self.metric} {text}", flush=True)
        live.lock.release()

    def _measured_otherwise(self, job: Job) -> str | None:
        """Why the score of a job does not compare with those of the study, if it does not. The
        first one that is accepted decides how all are measured."""
        with shared_study.exclusive(self.folder):
            unlike = shared_study.why_unlike(self.study, job.folder, self.metric)
            if unlike is None:
                shared_study.adopt_ruler(self.study, job.folder, self.metric)
            return unlike

    def _refuse(self, message: str) -> None:
        """End the search: stop the other trials."""
        self.error = message
        with self.mutex:
            for live in self.live.values():
                if live.job.folder is not None:
                    requests.ask_to_stop(live.job.folder)

    @contextlib.contextmanager
    def pruning(self) -> Iterator[None]:
        """While open, report the running trials to Optuna and stop those that it prunes."""
        closed = threading.Event()

        def poll() -> None:
            while not closed.wait(POLL_SECONDS):
                unknown: str | None = None
                with self.mutex:
                    for live in self.live.values():
                        with contextlib.suppress(*TRANSIENT):
                            self._report(live)
                            self._prune(live)
                            unknown = unknown or self._unknown(live)
                if unknown is not None and self.error is None:
                    self._refuse(unknown)

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield
        finally:
            closed.set()
            thread.join()

    def _unknown(self, live: LiveTrial) -> str | None:
        """Why the metric will not come, from the first log lines of a trial, each of which has all
        figures of training, or from the scores of its first evaluation. Figures of own jobs have
        other names."""
        own = "/" in self.metric and not self.metric.startswith((TRAINING, EVALUATION))
        if own or self.metric in {*SOMETIMES, *VALIDATED, *CLASSIFIED}:
            return None
        if live.reported >= 0 or live.job.folder is None:
            return None
        is_score = self.metric.startswith(EVALUATION)
        names = _scored(live.job.folder) if is_score else live.logged
        if not names or self.metric in names or shared_study.has_values(self.study):
            return None
        message = shared_study.missing_metric(live.job.folder, self.metric)
        return message + nearest(self.metric, sorted(names if is_score else names | SOMETIMES))

    def _prune(self, live: LiveTrial) -> None:
        if live.trial.should_prune() and live.job.folder is not None:
            requests.ask_to_stop(live.job.folder, "pruned")

    def _report(self, live: LiveTrial) -> None:
        """Report the values that a trial has logged since the last call."""
        if live.job.folder is not None:
            with contextlib.suppress(FileNotFoundError):
                lines, replaced = live.new_lines(live.job.folder / FILE)
                if replaced:
                    live.waiting.clear()
                live.waiting += parse(lines)
        while live.waiting:  # a row stays until Optuna has it
            row = live.waiting[0]
            live.logged.update(name for name in row if name.startswith(TRAINING))
            if is_number(row.get(self.metric)) and row["step"] > live.reported:
                live.trial.report(row[self.metric], row["step"])
                live.reported = row["step"]
            live.waiting.popleft()


def _scored(folder: Path) -> set[str]:
    """The names of the scores of a run, as in its log: all of them come with each evaluation."""
    try:
        return set(scores.values(scores.read(folder)))
    except (InputError, OSError):  # none yet
        return set()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
