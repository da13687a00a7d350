"""What the processes that share a study go by: who works on it, what its trials have in common, and
which of them count."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from ddpm.errors import InputError, shown
from ddpm.runner import roles
from ddpm.runner.runs.metrics_log import is_number, read_metrics
from ddpm.runner.safe_io import file_locks
from ddpm.runner.safe_io.file_locks import Lock
from ddpm.runner.sweeps.search import space

KNOWN = "search"  # a study's attribute: its metric, its fixed words, the keys it chooses
REPLACED = "replaced"  # another: numbers of trials that failed and count no more
OTHER = "Say the same again, or begin another study: with another sweep= name."

logger = logging.getLogger(__name__)
_told: set[Path] = set()  # locks that are held, perhaps by a process that has ended


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time: opens the study, or asks it for a trial."""
    with file_locks.held(folder / ".study.lock", wait=True):
        yield


def join(folder: Path) -> tuple[Lock, bool]:
    """Say that this process works on the study, until it releases the lock or ends; call `alone`.

    Returns:
        the lock, and whether no other process works on the study.
    """
    return file_locks.join(folder / ".study.users")


def hold(folder: Path, number: int) -> Lock | None:
    """What shows that a process answers for a trial, freed however that ends; None: it has."""
    (folder / ".trials").mkdir(exist_ok=True)
    file = folder / ".trials" / f"{number}.lock"
    try:
        return file_locks.take(file, probe=False)
    except file_locks.Taken as taken:
        if taken.remedy and file not in _told:
            _told.add(file)
            logger.warning("trial %d is held by %s. %s", number, taken.holder, taken.remedy)
        return None


def cut_torn(journal: Path) -> None:
    """Drop a last line that was not written to its end; call where nobody else works on it."""
    if not journal.exists():
        return
    with open(journal, "r+b") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)


def agree(
    study: Any, folder: Path, metric: str, direction: str, words: list[str], keys: Iterable[str]
) -> None:
    """See that this command wants what the study is of; a new study is told.

    A metric that no trial has logged was a mistake and may be put right.

    Args:
        words: those that are the same for all trials.
        keys: what is chosen.

    Raises:
        InputError: what the study is of, and what is wanted now.
    """
    now = {"metric": metric, "words": fixed(words), "keys": sorted(keys)}
    known = study.user_attrs.get(KNOWN)
    if study.direction.name.lower() != direction:
        was = study.direction.name.lower()
        raise InputError(
            f"hydra.sweeper.direction={direction}: {folder} has a study to {was}. {OTHER}"
        )
    if known is not None:
        known = known | {"words": fixed(known["words"])}  # earlier versions stored more of them
        if known["metric"] != metric and logged_any(study):
            raise InputError(
                f"hydra.sweeper.metric={metric}: {folder} has a study of {known['metric']}. {OTHER}"
            )
        if known["keys"] != now["keys"]:
            raise InputError(
                f"{_list(now['keys'])} would be chosen: {folder} has a study that chooses "
                f"{_list(known['keys'])}. {OTHER}"
            )
        if known["words"] != now["words"]:
            raise InputError(
                f"{_list(_less(now['words'], known['words']))}: {folder} has a study with "
                f"{_list(_less(known['words'], now['words']))} instead. {OTHER}"
            )
    if known != now:
        study.set_user_attr(KNOWN, now)


def begun(study: Any) -> list[Any]:
    """The trials that count: without those that somebody has only put on the list, and those that
    failed and are tried again."""
    replaced = study.user_attrs.get(REPLACED, [])
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name != "WAITING" and trial.number not in replaced
    ]


def drop(study: Any, numbers: list[int]) -> None:
    """Trials that failed count no more. Call `alone`."""
    study.set_user_attr(REPLACED, [*study.user_attrs.get(REPLACED, []), *numbers])


def again(study: Any, chosen_from: dict[str, Any]) -> None:
    """Put trials that failed on the list once more: what crashed may go on. Call `alone`."""
    failed = [trial for trial in begun(study) if trial.state.name == "FAIL"]
    if not failed:
        return
    drop(study, [trial.number for trial in failed])
    for trial in failed:
        if space.holds(chosen_from, trial.params):
            study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
    print(f"again    {len(failed)} that failed", flush=True)


def say_best(study: Any, metric: str) -> None:
    """The best trial, and how many there are of each kind, whoever ran them."""
    states = [trial.state.name for trial in begun(study)]
    if "COMPLETE" in states:
        best = study.best_trial
        chosen = " ".join(space.words(best.params))
        print(f"\nbest     trial {best.number}, {metric} {best.value:.4g}: {chosen}", flush=True)
    kinds = (("done", "COMPLETE"), ("pruned", "PRUNED"), ("failed", "FAIL"))
    counts = ", ".join(f"{states.count(state)} {kind}" for kind, state in kinds)
    print(f"study    {counts} in all", flush=True)


def fixed(words: list[str]) -> list[str]:
    """Those of the words that results depend on, in an order of their own; of two that say
    something of the same key the last."""
    last = {}
    for word, override in zip(words, OverridesParser.create().parse_overrides(words), strict=True):
        key = override.key_or_group
        if roles.decides_result(key.partition("/")[0]):
            last[override.get_key_element()] = word
    return sorted(last.values())


def logged_any(study: Any) -> bool:
    """Whether any trial has told a value."""
    trials = study.get_trials(deepcopy=False)
    return any(trial.intermediate_values or trial.value is not None for trial in trials)


def _less(some: list[str], others: list[str]) -> list[str]:
    return [word for word in some if word not in others]


def _list(words: list[str]) -> str:
    return ", ".join(shown(word) for word in words) or "nothing"


def rows(folder: Path | None, metric: str) -> list[dict[str, Any]]:
    """What a job has logged of a metric."""
    if folder is None or not (folder / "metrics.jsonl").exists():
        return []
    return [row for row in read_metrics(folder / "metrics.jsonl") if is_number(row.get(metric))]


def not_logged(folder: Path | None, metric: str) -> str:
    """What to say where a job is done and has logged no such metric."""
    found = read_metrics(folder / "metrics.jsonl") if folder else []
    names = sorted({name for row in found for name in row} - {"step"})
    return f"hydra.sweeper.metric={metric}: the job logged none; it has {', '.join(names)}."
