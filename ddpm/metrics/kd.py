"""Kernel distance of two sets of features: the squared MMD with the cubic kernel, unbiased."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.features.base import Features
from ddpm.limits.parts import check_limits
from ddpm.metrics import sets
from ddpm.metrics.base import Better, Material, Metric, Score

LEAST = 3  # pictures; so that one can be left out


def mean_square(x: Tensor) -> float:
    """The mean of the squares of all numbers of x."""
    return float(sum((x[rows].double() ** 2).sum() for rows in sets.blocks(*x.shape))) / x.numel()


def kernel(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """(x . y / (d scale) + 1)^3, float64 (n, m), of features (n, d) and (m, d)."""
    values = x.double() @ y.double().T
    values.div_(x.shape[1] * scale).add_(1)
    return values * values.square()


def row_means(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """The mean kernel value of each row of x with all of y: (n,)."""
    total = torch.zeros(len(x), dtype=torch.float64)
    columns = list(sets.blocks(len(y), 1, 2048))
    for rows in sets.blocks(len(x), 1, 2048):
        for part in columns:
            total[rows] += kernel(x[rows], y[part], scale).sum(1)
    return total / len(y)


def means_of_others(x: Tensor, scale: float) -> Tensor:
    """The mean kernel value of each row of x with the other rows: (n,). Half of the blocks."""
    total = torch.zeros(len(x), dtype=torch.float64)
    parts = list(sets.blocks(len(x), 1, 2048))
    for i, rows in enumerate(parts):
        own = kernel(x[rows], x[rows], scale)
        total[rows] += own.sum(1) - own.diagonal()
        for columns in parts[i + 1 :]:
            values = kernel(x[rows], x[columns], scale)
            total[rows] += values.sum(1)
            total[columns] += values.sum(0)
    return total / (len(x) - 1)


def mean_of_pairs(x: Tensor, scale: float) -> float:
    """The mean kernel value of pairs of different rows of x."""
    return float(means_of_others(x, scale).mean())


def leave_one_out(
    fake: Tensor, real: Tensor, of_real: float | None = None, scale: float = 1.0
) -> tuple[float, Tensor]:
    """The squared MMD, and the same without each of the fake pictures, (n,), for the jackknife.

    One unbiased estimate over all pairs of different pictures (Gretton et al. 2012, eq. 3), with
    the kernel of Binkowski et al. 2018 (arXiv:1801.01401). What it is without one picture
    follows exactly from the sums of rows.

    Args:
        fake, real: (n, d) and (N, d), n at least 3.
        of_real: mean kernel value of pairs of different real pictures, if it is known.
        scale: what x . y is divided by, besides d.
    """
    n = len(fake)
    of_real = mean_of_pairs(real, scale) if of_real is None else of_real
    within, across = means_of_others(fake, scale), row_means(fake, real, scale)
    value = float(within.mean() - 2 * across.mean()) + of_real
    pairs = (within.sum() * (n - 1) - 2 * within * (n - 1)) / ((n - 1) * (n - 2))
    return value, pairs - 2 * (across.sum() - across) / (n - 1) + of_real


def distance(
    fake: Tensor, real: Tensor, of_real: float | None = None, scale: float = 1.0
) -> tuple[float, float]:
    """The squared MMD, and its standard error over the fake pictures, by the jackknife."""
    value, without = leave_one_out(fake, real, of_real, scale)
    return value, sets.jackknife_error(without)


def _floor(spare: Tensor, real: Tensor, of_real: float, scale: float, n: int, seed: int) -> float:
    return distance(sets.stand_in(spare, n, seed), real, of_real, scale)[0]


class KD(Metric):
    """`kd_<features>`: 0 for equal distributions, whatever the number of pictures.

    The features are divided by the root mean square of those of the training pictures, so that
    the numbers of different features have like sizes. As the score does not depend on the number
    of pictures, its floor may be measured on fewer. Negative values are within the error of 0.

    Args:
        reference: train, held_out, both.
        floor: whether to measure real pictures in the samples' place.
        rescale: False: the features as they are, as in KID.
    """

    needs = frozenset({"features"})
    least = LEAST

    def __init__(
        self, *, reference: sets.Reference = "both", floor: bool = True, rescale: bool = True
    ) -> None:
        check_limits("metric.kd", reference=reference)
        self.reference, self.floor, self.rescale = reference, floor, rescale
        self._memo = sets.Memo(most=6)

    @property
    def compares_with(self) -> frozenset[str]:
        return sets.roles(self.reference)

    def figures(self, features: Features) -> dict[str, Better]:
        return {f"kd_{features.name}": "lower"}

    def measure(self, material: Material) -> Sequence[Score]:
        scores = []
        for pair in sets.comparisons(material, "kd", self.reference, self.least):
            train = material.train.features
            scale = (self._memo(mean_square, train) or 1.0) if self.rescale else 1.0
            of_real = self._memo(mean_of_pairs, pair.real, scale)
            value, without = leave_one_out(pair.fake, pair.real, of_real, scale)
            n, floor = len(pair.fake), None
            of_each = n * value - (n - 1) * without  # pseudo-values: Tukey 1958
            if self.floor and pair.spare is not None:
                place = (pair.spare, pair.real, of_real, scale, n, material.seed)
                floor = self._memo(_floor, *place)
            half = sets.NORMAL_95 * sets.jackknife_error(without)
            scores.append(
                Score(
                    sets.name("kd", material),
                    value,
                    n,
                    "lower",
                    low=value - half,
                    high=value + half,
                    floor=floor,
                    reference=pair.reference,
                    without=sets.without_groups(of_each),
                )
            )
        return scores

    def passport(self) -> dict[str, object]:
        scale = "root mean square of the training pictures" if self.rescale else "none"
        return {"name": "kd", "version": 1, "kernel": "(x.y/d + 1)^3", "scale": scale}
