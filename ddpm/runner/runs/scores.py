"""Scores with their passports: how each was measured (`ruler`), and what was (`subject`).

Scores compare only where their rulers are equal, field by field. A field that is unknown (null)
equals nothing, itself included; what is known to be absent is written as "none".
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ddpm.errors import InputError, shown
from ddpm.runner.runs.metrics_log import is_number
from ddpm.runner.safe_io import atomic
from ddpm.runner.safe_io.plain import Refused, regular_size
from ddpm.runner.safe_io.tree import flatten
from ddpm.runner.safe_io.yaml_json import read_json

FILE = "scores.jsonl"
NONE = "none"
MAX_BYTES = 1 << 26  # a long training run has thousands of scores
BETTER = {"lower": -1, "higher": 1, "neither": 0}

Passport = dict[str, Any]
Key = tuple[str, str | None]  # name and reference of a score: what a run has once for each step


@dataclass(frozen=True)
class Scored:
    """A line of scores.jsonl.

    Args:
        better: which values are: lower, higher or neither.
        low, high: bounds of the 95 % interval, where one is known.
        floor: the same score of held-out real pictures, as many.
        n: pictures that were measured.
        step: of the weights.
        ruler, subject: the two passports.
        environment: device, versions, seconds, command: what a score should not depend on.
        without: the score without each of some groups of the pictures, in turn.
    """

    name: str
    value: float
    n: int
    step: int
    better: str
    ruler: Passport
    subject: Passport
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    unit: str = ""
    reference: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    without: list[float] | None = None

    @property
    def key(self) -> Key:
        return self.name, self.reference

    @property
    def ruler_id(self) -> str | None:
        return ident(self.ruler)

    @property
    def sign(self) -> int:
        """1 if larger values are better, -1 if smaller ones are, else 0."""
        return BETTER[self.better]

    @property
    def as_good_as_real(self) -> bool:
        """Whether the floor lies in the interval, or beyond its better end."""
        if self.floor is None or self.low is None or self.high is None:
            return False
        return bool(self.sign) and (
            self.low <= self.floor if self.sign < 0 else self.high >= self.floor
        )

    def line(self) -> bytes:
        ids = {"ruler_id": self.ruler_id, "subject_id": ident(self.subject)}
        return (json.dumps(asdict(self) | ids) + "\n").encode()


def ident(passport: Passport) -> str | None:
    """The first 12 hex digits of SHA-256 over the sorted JSON; None if a field is unknown."""
    if any(map(_unknown, dict(flatten(passport)).values())):
        return None
    text = json.dumps(passport, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(one: Passport, other: Passport) -> list[str]:
    """The dotted fields in which two passports differ; an unknown field differs from all."""
    a, b = dict(flatten(one)), dict(flatten(other))
    return [key for key in sorted({*a, *b}) if not _equal(a.get(key), b.get(key))]


def described_differences(one: Passport, other: Passport, most: int = 5) -> str:
    """The fields in which they differ, with both values: `n: 1000, 500; metric.k: 5, 3`."""
    a, b = dict(flatten(one)), dict(flatten(other))
    keys = differences(one, other)
    texts = [f"{key}: {_text(a.get(key))}, {_text(b.get(key))}" for key in keys[:most]]
    return "; ".join(texts) + (f"; and {len(keys) - most} more" if len(keys) > most else "")


def known(value: Any) -> Any:
    """A value for a passport of ours, as JSON holds it: nothing in it is unknown, so None becomes
    "none", and an empty dictionary or list likewise."""
    if isinstance(value, Mapping) and value:
        return {str(key): known(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple) and value:
        return [known(inner) for inner in value]
    if value is None or value == {} or value == [] or value == ():
        return NONE
    return value if isinstance(value, bool | int | float | str) else str(value)


def logged(found: Sequence[Scored]) -> dict[str, Scored]:
    """The last of each score by its name in metrics.jsonl: `eval/fd_mnist`; of scores of one name,
    those after the first bear their reference, `eval/fd_mnist_held_out`."""
    named: dict[str, Scored] = {}
    for score in latest(found).values():
        name = f"eval/{score.name}"
        named[name if name not in named else f"{name}_{score.reference}"] = score
    return named


def values(found: Sequence[Scored]) -> dict[str, float]:
    """The values of `logged`."""
    return {name: score.value for name, score in logged(found).items()}


def write(folder: Path, scored: Sequence[Scored]) -> None:
    """Write `scores.jsonl`, whole or not at all."""
    atomic.write(folder / FILE, b"".join(score.line() for score in scored), durable=True)


def read(path: Path) -> list[Scored]:
    """The scores in a file, or in that of a run's folder.

    Raises:
        InputError: it does not exist, cannot be read, or holds something else.
    """
    file = path / FILE if path.is_dir() else path
    try:
        if regular_size(file) > MAX_BYTES:
            raise Refused(f"larger than {MAX_BYTES >> 20} MiB")
        lines = [line for line in file.read_bytes().split(b"\n") if line]
        found = [_scored(read_json(line, MAX_BYTES)) for line in lines]
    except FileNotFoundError:
        raise InputError(f"{path}: there is no {file.name}; job=evaluate writes one.") from None
    except (OSError, Refused) as error:
        raise InputError(f"{file}: not a file of scores ({shown(error, 200)}).") from None
    if not found:
        raise InputError(f"{file}: holds no scores.")
    return found


def latest(found: Sequence[Scored]) -> dict[Key, Scored]:
    """The last of each score: a training run has them for several steps."""
    return {score.key: score for score in sorted(found, key=lambda score: score.step)}


def _scored(row: Any) -> Scored:
    """A line that was read.

    Raises:
        Refused: it is not one of a file of scores.
    """
    if not isinstance(row, dict):
        raise Refused("a line is not an object")
    optional = {
        key: _number(row, key) for key in ("low", "high", "floor") if row.get(key) is not None
    }
    texts = {"name": str, "better": str, "ruler": dict, "subject": dict}
    for key, kind in texts.items():
        if not isinstance(row.get(key), kind):
            raise Refused(f"{key} is missing")
    if row["better"] not in BETTER:
        raise Refused(f"better is {shown(row['better'], 20)}")
    unit, reference = row.get("unit"), row.get("reference")
    environment = row.get("environment")
    return Scored(
        name=shown(row["name"], 100),
        value=_number(row, "value"),
        n=int(_number(row, "n")),
        step=0 if row.get("step") is None else int(_number(row, "step")),
        better=row["better"],
        ruler=row["ruler"],
        subject=row["subject"],
        unit=shown(unit, 20) if isinstance(unit, str) else "",
        reference=shown(reference, 20) if isinstance(reference, str) else None,
        environment=environment if isinstance(environment, dict) else {},
        without=_numbers(row.get("without")),
        **optional,
    )


def _number(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    if value is None or not is_number(value) or not math.isfinite(value):
        raise Refused(f"{key} is not a number")
    return float(value)


def _numbers(value: Any) -> list[float] | None:
    whole = isinstance(value, list) and all(is_number(v) and math.isfinite(v) for v in value)
    return value if whole else None


def _unknown(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_unknown, value))
    return value is None or value == {}


def _equal(one: Any, other: Any) -> bool:
    """Whether two fields are known and equal; 1, 1.0 and true are three different values."""
    if _unknown(one) or _unknown(other):
        return False
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _text(value: Any) -> str:
    return "unknown" if _unknown(value) else shown(json.dumps(value).strip('"'), 60)
