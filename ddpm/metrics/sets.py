"""What metrics of sets of pictures share: references, seeded draws, intervals."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ddpm.errors import InputError
from ddpm.features.base import Features
from ddpm.metrics.base import Material, Pictures, Score
from ddpm.randomness import mix

T = TypeVar("T")
Reference = Literal["train", "held_out", "both"]
NORMAL_95 = 1.959963984540054
GROUPS = 20  # that `without_groups` leaves out
BLOCK = 1 << 22  # numbers of a block of distances or kernel values: 32 MB in float64


@dataclass(frozen=True)
class Comparison:
    """Samples, and the real pictures that they are compared with.

    Args:
        reference: train or held_out.
        real: features of the reference, (N, d).
        fake: features of the samples, (n, d).
        spare: features of real pictures outside of the reference, to take the samples' place:
            held-out pictures for the reference train, training pictures for held_out.
    """

    reference: str
    real: Tensor
    fake: Tensor
    spare: Tensor | None


def roles(reference: Reference) -> frozenset[str]:
    return frozenset({"train", "held_out"} if reference == "both" else {reference})


def samples_of(material: Material, metric: str, least: int) -> Pictures:
    """The samples, at least so many.

    Raises:
        InputError: there are none, or too few.
    """
    if material.samples is None:
        raise InputError(f"metric={metric}: needs samples, and there are none.")
    if len(material.samples) < least:
        raise InputError(
            f"metric={metric}: needs at least {least:,} samples, got {len(material.samples):,}. "
            "Draw more: job.num_samples."
        )
    return material.samples


def features_of(pictures: Pictures, what: str, metric: str, least: int) -> Tensor:
    """The features of a set, (n, d) float32 as they are.

    Raises:
        InputError: too few pictures; features missing, not (n, d), or not finite.
    """
    features = pictures.features
    if features is None:
        raise InputError(f"metric={metric}: needs features of the {what} pictures.")
    if features.dim() != 2:
        raise InputError(
            f"metric={metric}: features of the {what} pictures must be (n, d), got "
            f"{tuple(features.shape)}. Pictures themselves are no features: see features=pixels."
        )
    if len(features) < least:
        raise InputError(
            f"metric={metric}: needs at least {least:,} {what} pictures, got {len(features):,}."
        )
    if not torch.isfinite(features).all():
        raise InputError(f"metric={metric}: features of the {what} pictures hold NaN or inf.")
    return features


def comparisons(
    material: Material, metric: str, reference: Reference, least: int
) -> Iterator[Comparison]:
    """Each chosen reference that exists; train first.

    Raises:
        InputError: too few pictures, missing features, or features of different width; there are
            no held-out pictures and the reference is held_out alone.
    """
    samples = samples_of(material, metric, least)
    fake = features_of(samples, "sampled", metric, least)
    train = features_of(material.train, "training", metric, least)
    held_out = None
    if material.held_out is not None:
        # As stand-ins only, for the floor, they may be too few.
        if reference != "train" or len(material.held_out) >= least:
            held_out = features_of(material.held_out, "held-out", metric, least)
    elif reference == "held_out":
        raise InputError(
            f"metric.{metric}.reference=held_out: these data have no held-out pictures. "
            "Use reference=train, or hold some out: data.holdout=0.1."
        )
    for real in (train, held_out):
        if real is not None and real.shape[1] != fake.shape[1]:
            raise InputError(
                f"metric={metric}: samples have {fake.shape[1]:,} features a picture, real "
                f"pictures {real.shape[1]:,}. Both must come from the same features."
            )
    if reference in ("train", "both"):
        yield Comparison("train", train, fake, held_out)
    if reference in ("held_out", "both") and held_out is not None:
        yield Comparison("held_out", held_out, fake, train)


def is_original(features: Features) -> bool:
    """Whether scores may have the names that papers use: Inception with the legacy resize."""
    return features.name == "inception" and features.passport().get("resize") == "legacy"


def name(metric: str, material: Material) -> str:
    """fd_mnist, recall_digits."""
    return f"{metric}_{needed_features(material, metric).name}"


def needed_features(material: Material, metric: str) -> Features:
    """
    Raises:
        InputError: there are none.
    """
    if material.features is None:
        raise InputError(f"metric={metric}: needs features: features=...")
    return material.features


def draw(count: int, most: int, seed: int, stream: str) -> Tensor:
    """`most` different indices of 0..count-1 in random order; all of them if there are fewer."""
    generator = torch.Generator().manual_seed(mix(seed, f"metrics/{stream}", count))
    return torch.randperm(count, generator=generator)[:most]


def stand_in(spare: Tensor, n: int, seed: int) -> Tensor:
    """`n` rows of `spare`, drawn by seed: real pictures in the place of n samples; all of them if
    there are fewer."""
    return spare[draw(len(spare), n, seed, "floor")]


def blocks(rows: int, columns: int, most: int = BLOCK) -> Iterator[slice]:
    """The rows in slices, such that a block of rows x columns has at most `most` numbers."""
    size = max(1, most // max(1, columns))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def jackknife_error(values: Tensor) -> float:
    """Standard error from the values without one part each, (g,): Efron & Stein 1981."""
    g = len(values)
    return math.sqrt((g - 1) / g * float(((values - values.mean()) ** 2).sum()))


def without_groups(values: Tensor) -> list[float] | None:
    """The mean of one value for each picture, (n,), without each group of pictures in turn, where
    picture i is of group i mod 20; None: there are too few."""
    n = len(values)
    if n < 2 * GROUPS:
        return None
    parts = [values[g::GROUPS].double() for g in range(GROUPS)]
    total = sum(float(part.sum()) for part in parts)
    return [(total - float(part.sum())) / (n - len(part)) for part in parts]


class Estimate(NamedTuple):
    """A mean with its standard error."""

    value: float
    error: float

    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error

    def score(self, name: str, values: Tensor, reference: str, unit: str = "") -> Score:
        """The score of which this is the mean: of one value for each picture, (n,), the lower the
        better."""
        low, high = self.interval()
        without = without_groups(values)
        return Score(
            *(name, self.value, len(values), "lower", unit, low, high),
            reference=reference,
            without=without,
        )


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n independent pictures: Wilson 1927."""
    z2 = NORMAL_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = max(0.0, centre - half) if share > 0 else 0.0  # but for rounding, centre = half
    return low, min(1.0, centre + half) if share < 1 else 1.0


class Memo:
    """Results for tensors that are the same objects: those of the reference do not change while
    a network trains."""

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._known: list[tuple[Callable[..., Any], tuple[object, ...], Any]] = []

    def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        for entry in self._known:
            if entry[0] == function and all(map(_same, entry[1], arguments)):
                break
        else:
            entry = (function, arguments, function(*arguments))
        others = [other for other in self._known if other is not entry]
        self._known = [*others, entry][-self._most :]  # the least recently used one goes
        value: T = entry[2]
        return value


def _same(a: object, b: object) -> bool:
    return a is b or (isinstance(a, int | float | str) and a == b)
