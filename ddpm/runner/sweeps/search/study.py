"""Coordination of processes that share an Optuna study: locks, the agreed setup, counted trials."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from ddpm.errors import InputError, shown
from ddpm.runner import roles
from ddpm.runner.runs import scores
from ddpm.runner.runs.metrics_log import read_metrics
from ddpm.runner.runs.scores import Scored
from ddpm.runner.safe_io import file_locks
from ddpm.runner.safe_io.file_locks import Lock
from ddpm.runner.sweeps.search import space

SETUP = "search"  # attribute of a study: its metric, fixed overrides and searched keys
RULER = "ruler"  # attribute of a study: how its scores were measured
REPLACED = "replaced"  # attribute of a study: numbers of trials that do not count
ADVICE = "Repeat the study's options, or start another study with another sweep= name."

logger = logging.getLogger(__name__)
_warned: set[Path] = set()  # locks that are held, perhaps by a process that has ended


def exclusive(folder: Path) -> AbstractContextManager[None]:
    """Let one process at a time open the study or draw a trial."""
    return file_locks.held(folder / ".study.lock", wait=True)


def join(folder: Path) -> tuple[Lock, bool]:
    """Register this process at the study until it releases the lock or ends. Needs `exclusive`.

    Returns:
        the lock, and whether no other process is registered.
    """
    return file_locks.join(folder / ".study.users")


def claim_trial(folder: Path, number: int) -> Lock | None:
    """A lock on a trial, freed when the process ends; None while another process holds it."""
    (folder / ".trials").mkdir(exist_ok=True)
    file = folder / ".trials" / f"{number}.lock"
    try:
        return file_locks.take(file, probe=False)
    except file_locks.Taken as taken:
        if taken.remedy and file not in _warned:
            _warned.add(file)
            logger.warning("trial %d is held by %s. %s", number, taken.holder, taken.remedy)
        return None


def truncate_torn_line(journal: Path) -> None:
    """Drop an incomplete last line. Only while no other process uses the study."""
    if not journal.exists():
        return
    with open(journal, "r+b") as file:
        complete = file.read().rfind(b"\n") + 1
        file.truncate(complete)


def check_setup(
    study: Any, folder: Path, metric: str, direction: str, fixed: list[str], keys: Iterable[str]
) -> None:
    """Check that the study has the setup of this command; a new study gets it.

    The metric may be corrected while no trial has logged it.

    Args:
        fixed: overrides of all trials.
        keys: of the search space.

    Raises:
        InputError: the study's setup and the command's.
    """
    setup = {"metric": metric, "words": decisive_overrides(fixed), "keys": sorted(keys)}
    stored = study.user_attrs.get(SETUP)
    if (stored_direction := study.direction.name.lower()) != direction:
        raise InputError(
            f"hydra.sweeper.direction={direction}: {folder} has a study to {stored_direction}. "
            f"{ADVICE}"
        )
    if stored is not None:
        # Earlier versions stored more overrides.
        stored = stored | {"words": decisive_overrides(stored["words"])}
        if stored["metric"] != metric and has_values(study):
            raise InputError(
                f"hydra.sweeper.metric={metric}: {folder} has a study of {stored['metric']}. "
                f"{ADVICE}"
            )
        if stored["keys"] != setup["keys"]:
            raise InputError(
                f"{_listed(setup['keys'])} would be searched: {folder} has a study that searches "
                f"{_listed(stored['keys'])}. {ADVICE}"
            )
        if stored["words"] != setup["words"]:
            added = [word for word in setup["words"] if word not in stored["words"]]
            missing = [word for word in stored["words"] if word not in setup["words"]]
            raise InputError(
                f"{_listed(added)}: {folder} has a study with {_listed(missing)} instead. {ADVICE}"
            )
    if stored != setup:
        study.set_user_attr(SETUP, setup)


def counted_trials(study: Any) -> list[Any]:
    """The trials that count: neither waiting in the queue, nor discounted."""
    replaced = study.user_attrs.get(REPLACED, [])
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name != "WAITING" and trial.number not in replaced
    ]


def discount(study: Any, numbers: list[int]) -> None:
    """Exclude failed trials from those that count. Needs `exclusive`."""
    study.set_user_attr(REPLACED, [*study.user_attrs.get(REPLACED, []), *numbers])


def retry_failed(study: Any, distributions: dict[str, Any]) -> None:
    """Enqueue failed trials again, as a crashed job can resume. Needs `exclusive`."""
    failed = [trial for trial in counted_trials(study) if trial.state.name == "FAIL"]
    if not failed:
        return
    discount(study, [trial.number for trial in failed])
    for trial in failed:
        if space.allows(distributions, trial.params):
            study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
    print(f"again    {len(failed)} that failed", flush=True)


def print_best(study: Any, metric: str) -> None:
    """Print the best trial of all processes, and the number of trials by outcome."""
    states = [trial.state.name for trial in counted_trials(study)]
    if "COMPLETE" in states:
        best = study.best_trial
        params = " ".join(space.overrides(best.params))
        print(f"\nbest     trial {best.number}, {metric} {best.value:.4g}: {params}", flush=True)
    outcomes = (("done", "COMPLETE"), ("pruned", "PRUNED"), ("failed", "FAIL"))
    counts = ", ".join(f"{states.count(state)} {outcome}" for outcome, state in outcomes)
    print(f"study    {counts} in all", flush=True)


def decisive_overrides(overrides: list[str]) -> list[str]:
    """The overrides that decide the results, sorted; of several for one key, the last."""
    by_key = {}
    parsed = OverridesParser.create().parse_overrides(overrides)
    for text, override in zip(overrides, parsed, strict=True):
        if roles.decides_result(override.key_or_group.partition("/")[0]):
            by_key[override.get_key_element()] = text
    return sorted(by_key.values())


def has_values(study: Any) -> bool:
    """Whether any trial has reported a value."""
    trials = study.get_trials(deepcopy=False)
    return any(trial.intermediate_values or trial.value is not None for trial in trials)


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(shown(text) for text in texts) or "nothing"


def score_of(folder: Path | None, metric: str) -> Scored | None:
    """The score of a job with its passport; None without one.

    Raises:
        InputError: the file of the scores is damaged.
    """
    if folder is None or not (folder / scores.FILE).exists():
        return None
    return scores.logged(scores.read(folder)).get(metric)


def adopt_ruler(study: Any, folder: Path | None, metric: str) -> None:
    """Make the ruler of a job's score the study's, if it has none yet. Needs `exclusive`.

    Raises:
        InputError: see `score_of`.
    """
    score = score_of(folder, metric)
    if score is not None and score.ruler_id is not None and RULER not in study.user_attrs:
        study.set_user_attr(RULER, score.ruler)


def why_unlike(study: Any, folder: Path | None, metric: str) -> str | None:
    """Why a job's score does not belong into the study; None if it does, or has no passport."""
    try:
        score = score_of(folder, metric)
    except InputError as error:
        return str(error)
    if score is None:
        return None
    wanted = {"lower": "minimize", "higher": "maximize"}.get(score.better)
    if wanted and wanted != study.direction.name.lower():
        return (
            f"hydra.sweeper.direction={study.direction.name.lower()}: {score.better} values of "
            f"{metric} are better; search with hydra.sweeper.direction={wanted}."
        )
    ruler = study.user_attrs.get(RULER)
    if ruler is None and score.ruler_id is not None:
        return None
    if ruler is not None and not scores.differences(ruler, score.ruler):
        return None
    differ = scores.described_differences(ruler or score.ruler, score.ruler)
    return (
        f"hydra.sweeper.metric={metric}: {folder} was measured by another ruler than the trials "
        f"before ({differ}), so their values do not compare. Search keys that do not change it."
    )


def missing_metric(folder: Path | None, metric: str) -> str:
    """The message about a job that is done without having logged the metric."""
    rows = read_metrics(folder / "metrics.jsonl") if folder else []
    names = sorted({name for row in rows for name in row} - {"step"})
    return f"hydra.sweeper.metric={metric}: the job logged none; it has {', '.join(names)}."
