"""Precision, recall, density and coverage: sets of features as unions of balls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.features.base import Features
from ddpm.limits.parts import check_limits
from ddpm.metrics import sets
from ddpm.metrics.base import Better, Material, Metric, Score
from ddpm.statistics.student import student_95

GROUPS = 10  # parts of the samples that the jackknife leaves out in turn
ROUNDING = 1e-12  # of the largest squared norm: distances closer than this count as equal


@dataclass(frozen=True)
class Result:
    """The four scores, each with its standard error over the samples, and without each of some
    groups of the samples in turn (None: there are too few)."""

    values: tuple[float, float, float, float]
    errors: tuple[float, float, float, float]
    without: tuple[list[float] | None, ...]


NAMES = ("precision", "recall", "density", "coverage")


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances of all pairs of rows: (n, d), (m, d) -> (n, m), float64."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)
    return squares.addmm_(x, y.T, alpha=-2).clamp_(min=0)


def radii(x: Tensor, k: int, groups: Sequence[Tensor] = ()) -> Tensor:
    """Squared distance of each row to its k-th nearest other row: first among all rows, then
    among those outside of each group: (n, d) -> (1 + g, n)."""
    found = torch.empty(1 + len(groups), len(x), dtype=x.dtype)
    for rows in sets.blocks(len(x), len(x)):
        distances = squared_distances(x[rows], x)
        own = torch.arange(rows.start, rows.stop)
        distances[own - rows.start, own] = math.inf
        found[0, rows] = _nearest(distances, k)[:, -1]
        near = [_nearest(distances[:, group], k) for group in groups]
        for g in range(len(groups)):
            found[1 + g, rows] = _nearest(torch.cat([*near[:g], *near[g + 1 :]], 1), k)[:, -1]
    return found


def _nearest(distances: Tensor, k: int) -> Tensor:
    """The k smallest numbers of each row, in rising order."""
    return distances.topk(min(k, distances.shape[1]), 1, largest=False).values


def prdc(
    fake: Tensor, real: Tensor, k: int, *, inclusive: bool = True, seed: int | None = 0
) -> Result:
    """Precision and recall of Kynkaanniemi et al. 2019 (arXiv:1904.06991), density and coverage
    of Naeem et al. 2020 (arXiv:2002.09797).

    Around each picture lies a ball that reaches its k-th nearest other picture of its set.
    Precision: share of the fake pictures in a real ball. Recall: share of the real pictures in a
    fake ball. Density: number of real balls around a fake picture, divided by k. Coverage: share
    of the real balls with a fake picture in them.

    Errors: of precision and density those of means over the fake pictures; of recall and coverage
    those of the jackknife that leaves out a tenth of the fake pictures at a time.

    Args:
        fake, real: (n, d) and (N, d), both more than k.
        inclusive: whether a ball's surface belongs to it.
        seed: of the parts; None: no errors (they are NaN).
    """
    centre = real.mean(0, dtype=torch.float64)
    fake, real = fake.double() - centre, real.double() - centre
    largest = max(float((fake**2).sum(1).max()), float((real**2).sum(1).max()))
    slack = ROUNDING * largest * (1 if inclusive else -1)
    groups = _groups(len(fake), k, seed)
    real_radii = radii(real, k)[0] + slack
    fake_radii = radii(fake, k, groups) + slack
    order = torch.cat(groups) if groups else torch.arange(len(fake))
    balls, recalled, covered = _count(
        fake[order], real, fake_radii[:, order], real_radii, [len(group) for group in groups]
    )
    recalled, covered = recalled / len(real), covered / len(real)
    precise = (balls > 0).double()
    values = (precise.mean(), recalled[0], balls.mean() / k, covered[0])
    root = math.sqrt(len(fake))
    errors = (precise.std() / root, _error(recalled), balls.std() / (k * root), _error(covered))
    result = tuple(float(v) for v in values), tuple(float(e) for e in errors)
    of_groups = (
        *(sets.without_groups(precise), _groups_of(recalled)),
        *(sets.without_groups(balls / k), _groups_of(covered)),
    )
    return Result(*result, of_groups)  # type: ignore[arg-type]


def _groups(n: int, k: int, seed: int | None) -> list[Tensor]:
    """The parts of n samples that are left out in turn; none if they are too few."""
    if seed is None or n < 2 * GROUPS or n - math.ceil(n / GROUPS) <= k:
        return []
    return list(sets.draw(n, n, seed, "prdc groups").tensor_split(GROUPS))


def _count(
    fake: Tensor, real: Tensor, fake_radii: Tensor, real_radii: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Real balls around each fake picture, (n,); real pictures in a fake ball, and real balls with
    a fake picture in them, each with all fake pictures and without each group: (1 + g,).

    Args:
        fake, real: (n, d), in the order of the groups, and (N, d).
        fake_radii, real_radii: squared, (1 + g, n) and (N,).
        sizes: of the g groups.
    """
    groups, sizes = range(len(sizes)), sizes or [len(fake)]
    balls = torch.zeros(len(fake), dtype=torch.float64)
    recalled = torch.zeros(len(fake_radii), dtype=torch.float64)
    covered = torch.zeros(len(fake_radii), dtype=torch.float64)
    for rows in sets.blocks(len(real), len(fake)):
        distances = squared_distances(real[rows], fake)
        within = distances <= real_radii[rows, None]
        balls += within.sum(0)
        covered += _with_and_without(_any_by_group(within, sizes))
        recalled[0] += (distances <= fake_radii[0]).any(1).sum()
        for g in groups:
            inside = _any_by_group(distances <= fake_radii[1 + g], sizes)
            inside[:, g] = False
            recalled[1 + g] += inside.any(1).sum()
    return balls, recalled, covered


def _any_by_group(flags: Tensor, sizes: Sequence[int]) -> Tensor:
    """(m, n), whose columns are grouped -> (m, g): whether any column of a group is True."""
    return torch.stack([part.any(1) for part in flags.split(list(sizes), 1)], 1)


def _with_and_without(hit: Tensor) -> Tensor:
    """(m, g) -> counts of rows with any True: with all groups, and without each: (1 + g,)."""
    count = hit.sum(1)
    without = (count[:, None] - hit.long() > 0).sum(0)
    total = (count > 0).sum()[None]
    return torch.cat([total, without]) if hit.shape[1] > 1 else total


def _groups_of(values: Tensor) -> list[float] | None:
    return values[1:].tolist() if len(values) > 1 else None


def _error(values: Tensor) -> float:
    return sets.jackknife_error(values[1:]) if len(values) > 1 else math.nan


@dataclass(kw_only=True, eq=False)
class PRDC(Metric):
    """`precision_<features>`, `recall_`, `density_`, `coverage_`.

    All four depend on the numbers of samples and of real pictures. The floor needs as many real
    pictures as there are samples.

    Args:
        k: which neighbour a ball reaches.
        inclusive: whether a ball's surface belongs to it, as in Kynkaanniemi et al. and
            torch-fidelity; False: as in prdc and dgm-eval.
        balanced: compare with only as many real pictures as there are samples, drawn by seed. With
            all of a much larger reference, few of its small balls can be covered.
        reference: train, held_out, both.
        floor: whether to measure real pictures in the samples' place.
    """

    needs = frozenset({"features"})

    k: int = 5
    inclusive: bool = True
    balanced: bool = True
    reference: sets.Reference = "both"
    floor: bool = True

    def __post_init__(self) -> None:
        check_limits("metric.prdc", k=self.k, reference=self.reference)
        self.least = self.k + 1
        self._memo = sets.Memo()

    @property
    def compares_with(self) -> frozenset[str]:
        return sets.roles(self.reference)

    def figures(self, features: Features) -> dict[str, Better]:
        return {f"{name}_{features.name}": "higher" for name in NAMES}

    def measure(self, material: Material) -> Sequence[Score]:
        scores = []
        for pair in sets.comparisons(material, "prdc", self.reference, self.least):
            n, seed = len(pair.fake), material.seed
            result = self._of(pair.fake, pair.real, n, seed)
            floor: tuple[float | None, ...] = (None,) * 4
            if self.floor and pair.spare is not None and len(pair.spare) >= n:
                floor = self._memo(self._floor, pair.spare, pair.real, n, seed)
            scores += [
                Score(
                    sets.name(name, material),
                    value,
                    n,
                    "higher",
                    unit="" if name == "density" else "share",
                    **_interval(name, value, error, n),
                    floor=floor[i],
                    reference=pair.reference,
                    without=result.without[i],
                )
                for i, (name, value, error) in enumerate(
                    zip(NAMES, result.values, result.errors, strict=True)
                )
            ]
        return scores

    def _of(self, fake: Tensor, real: Tensor, n: int, seed: int, errors: bool = True) -> Result:
        if self.balanced:
            real = real[sets.draw(len(real), n, seed, "prdc reference")]
        groups = seed if errors else None
        return prdc(fake, real, self.k, inclusive=self.inclusive, seed=groups)

    def _floor(self, spare: Tensor, real: Tensor, n: int, seed: int) -> tuple[float, ...]:
        return self._of(sets.stand_in(spare, n, seed), real, n, seed, errors=False).values

    def passport(self) -> dict[str, object]:
        options = {"k": self.k, "inclusive": self.inclusive, "balanced": self.balanced}
        return {"name": "prdc", "version": 1, **options}


def _interval(name: str, value: float, error: float, n: int) -> dict[str, float | None]:
    """low and high; empty where there are too few samples for the jackknife."""
    if math.isnan(error) and name != "precision":
        return {"low": None, "high": None}
    if name == "precision" or (error == 0 and name != "density"):  # all parts agree, at 0 or 1
        low, high = sets.wilson(value, n)
        return {"low": low, "high": high}
    factor = sets.NORMAL_95 if name == "density" else student_95(GROUPS - 1)
    high = math.inf if name == "density" else 1.0
    return {"low": max(0.0, value - factor * error), "high": min(high, value + factor * error)}
