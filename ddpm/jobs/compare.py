"""job=compare: differences between the scores of evaluations, or why there are none to state."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from ddpm.errors import InputError, listed
from ddpm.jobs.report import read_keys
from ddpm.runner.report import score_table
from ddpm.runner.runs import scores
from ddpm.runner.runs.scores import Key, Scored


def compare(cfg: DictConfig) -> None:
    """Print a table of the scores that all evaluations have, with differences from the first; of a
    single one a line for each score, to be published.

    Raises:
        InputError: unlike rulers, nothing in common, or keys that this job does not take.
    """
    takes = "job=compare only reads scores; it takes scores=[<run>,<run>]"
    keys = read_keys(cfg, ("scores", "allow"), takes)
    named, allowed = keys["scores"], keys["allow"]
    if not isinstance(named, list) or not named:
        raise InputError(
            "scores: name run folders or files of scores: 'scores=[<run>,<run>]'; 'scores=[<run>]' "
            "states those of one."
        )
    if not isinstance(allowed, list) or not all(isinstance(field, str) for field in allowed):
        raise InputError(f"allow={allowed}: must be a list of fields, like [n, reference.split].")
    found = [scores.latest(scores.read(Path(path))) for path in named]
    if len(found) == 1:
        print("\n".join(map(score_table.stated, found[0].values())))
        return
    common = _common(named, found)
    unlike = _unlike(found, common)
    if refused := {key: fields for key, fields in unlike.items() if _beyond(fields, allowed)}:
        raise InputError(_refusal(found, refused))
    print(score_table.comparison(named, found, common, unlike))


def _common(named: Sequence[str], found: Sequence[Mapping[Key, Scored]]) -> list[Key]:
    """The scores that all have.

    Raises:
        InputError: there are none.
    """
    common = [key for key in found[0] if all(key in others for others in found[1:])]
    if not common:
        lines = [
            f"{path}: {listed(sorted({name for name, _ in of}), 8)}"
            for path, of in zip(named, found, strict=True)
        ]
        raise InputError("\n".join(["scores: none that all of them have.", *lines[:4]]))
    return common


def _unlike(found: Sequence[Mapping[Key, Scored]], common: Sequence[Key]) -> dict[Key, list[str]]:
    """The fields in which the rulers of a score differ, for each score where some do."""
    unlike = {}
    for key in common:
        first, *others = [of[key].ruler for of in found]
        fields = {f for other in others for f in scores.differences(first, other)}
        if fields:
            unlike[key] = sorted(fields)
    return unlike


def _beyond(fields: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """The fields that may not differ."""
    return [f for f in fields if not any(f == a or f.startswith(f"{a}.") for a in allowed)]


def _refusal(found: Sequence[Mapping[Key, Scored]], refused: Mapping[Key, list[str]]) -> str:
    """The scores and the fields in which their rulers differ, with the values."""
    lines: dict[str, list[str]] = {}
    for key in refused:
        first, *others = [of[key].ruler for of in found]
        other = next(o for o in others if scores.differences(first, o))
        lines.setdefault(scores.described_differences(first, other), []).append(key[0])
    reasons = [
        f"{listed(list(dict.fromkeys(names)), 4)}: {fields}"
        for fields, names in list(lines.items())[:3]
    ]
    fields = sorted({f for several in refused.values() for f in several})
    return "\n".join(
        [
            "scores: measured by unlike rulers, so they do not compare.",
            *reasons,
            f"Evaluate both alike, or see them unranked: 'allow=[{','.join(fields[:4])}]'",
        ]
    )
