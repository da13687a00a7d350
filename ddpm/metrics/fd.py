"""Frechet distance of two sets of features; called FID with Inception and the legacy resize."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddpm.features.base import Features
from ddpm.limits.parts import check_limits
from ddpm.metrics import sets
from ddpm.metrics.base import Better, Material, Metric, Score
from ddpm.randomness import mix
from ddpm.statistics.student import student_95

logger = logging.getLogger(__name__)
LEAST = 10  # pictures; of fewer, the number says nothing but how few they are
SIZES = 15  # subsets of the extrapolation
SMALLEST = 5  # the smallest subset is a fifth of the samples


@dataclass(frozen=True)
class Moments:
    """Count, mean (d,) and scatter (d, d), the sum of (x - mean)(x - mean)^T; float64."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """The moments of features (n, d)."""
        mean = x.mean(0, dtype=torch.float64)
        scatter = mean.new_zeros(x.shape[1], x.shape[1])
        for rows in sets.blocks(*x.shape):
            centred = x[rows].double() - mean
            scatter.addmm_(centred.T, centred)
        return cls(len(x), mean, scatter)

    def without(self, part: "Moments") -> "Moments":
        """The moments of the other pictures: the update of Chan et al. 1979, backwards."""
        count = self.count - part.count
        mean = (self.count * self.mean - part.count * part.mean) / count
        apart = mean - part.mean
        weight = count * part.count / self.count
        return Moments(count, mean, self.scatter - part.scatter - weight * apart.outer(apart))

    @property
    def covariance(self) -> Tensor:
        return self.scatter / (self.count - 1)


@dataclass(frozen=True)
class Gaussian:
    """A mean (d,), and a factor (d, r) of the covariance, which is factor @ factor.T; float64."""

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Gaussian":
        """The Gaussian of features (n, d). For n <= d the factor is the centred features
        themselves, so that a covariance of lower rank needs no root."""
        if len(x) <= x.shape[1]:
            mean, rows = _centred(x)
            return cls(mean, rows.T)
        moments = Moments.of(x)
        variances, directions = torch.linalg.eigh(moments.covariance)
        return cls(moments.mean, directions * variances.clamp(min=0).sqrt())


def frechet(x: Tensor, y: Tensor) -> float:
    """Frechet distance between the Gaussians with the moments of two sets of features.

    |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2), with covariances that divide by n - 1
    (Heusel et al. 2017, arXiv:1706.08500). With S_y = B B^T, the last trace is that of the root
    of the symmetric matrix B^T S_x B, or the sum of the singular values of A^T B if S_x = A A^T.

    Args:
        x, y: (n, d) and (m, d), n and m at least 2.
    """
    return to_gaussian(x, Gaussian.of(y))


def to_gaussian(x: Tensor, other: Gaussian) -> float:
    """Distance from the features x (n, d) to a Gaussian."""
    if len(x) > x.shape[1]:
        return from_moments(Moments.of(x), other)
    mean, rows = _centred(x)
    overlap = torch.linalg.svdvals(rows @ other.factor).sum()
    return _distance(mean, (rows**2).sum(), overlap, other)


def from_moments(moments: Moments, other: Gaussian) -> float:
    """The same from moments of more pictures than features."""
    covariance = moments.covariance
    inner = other.factor.T @ covariance @ other.factor
    overlap = torch.linalg.eigvalsh(inner).clamp(min=0).sqrt().sum()
    return _distance(moments.mean, covariance.trace(), overlap, other)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,), and the rows (n, d) whose product rows.T @ rows is the covariance."""
    mean = x.mean(0, dtype=torch.float64)
    return mean, (x.double() - mean) / math.sqrt(len(x) - 1)


def _distance(mean: Tensor, trace: Tensor, overlap: Tensor, other: Gaussian) -> float:
    apart = ((mean - other.mean) ** 2).sum()
    distance = float(apart + trace + (other.factor**2).sum() - 2 * overlap)
    return max(0.0, distance)  # of a set with itself, rounding may leave less


def without_groups(x: Tensor, other: Gaussian, groups: int, seed: int) -> Tensor:
    """The distances without each group of the samples x in turn, for the jackknife: (groups,)."""
    parts = sets.draw(len(x), len(x), seed, "fd groups").tensor_split(min(groups, len(x)))
    if min(len(x) - len(part) for part in parts) > x.shape[1]:
        moments = Moments.of(x)
        values = [from_moments(moments.without(Moments.of(x[p])), other) for p in parts]
    else:
        keep = [torch.cat([*parts[:i], *parts[i + 1 :]]) for i in range(len(parts))]
        values = [to_gaussian(x[rows], other) for rows in keep]
    return torch.tensor(values, dtype=torch.float64)


def error(x: Tensor, other: Gaussian, groups: int, seed: int) -> float:
    """Standard error over the samples x, by the jackknife that leaves out a group at a time."""
    return sets.jackknife_error(without_groups(x, other, groups, seed))


def extrapolate(x: Tensor, other: Gaussian, seed: int) -> tuple[float, float]:
    """The distance at infinitely many samples, and the standard error of the line.

    The intercept of a straight line in 1 / n through random subsets of the samples: Chong &
    Forsyth 2020 (arXiv:1911.07023), here from a fifth of the samples up to all, drawn by seed.
    Where the true distance is about 0, the intercept may be negative by as much as its error.
    """
    sizes = torch.linspace(len(x) // SMALLEST, len(x), SIZES).round().long().tolist()
    values = [
        to_gaussian(x[sets.draw(len(x), size, mix(seed, "fd size", i), "fd subset")], other)
        for i, size in enumerate(sizes)
    ]
    inverse = 1 / torch.tensor(sizes, dtype=torch.float64)
    design = torch.stack([torch.ones_like(inverse), inverse], 1)
    y = torch.tensor(values, dtype=torch.float64)
    line = torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
    variance = ((y - design @ line) ** 2).sum() / (SIZES - 2)
    return float(line[0]), float((variance * torch.linalg.inv(design.T @ design)[0, 0]).sqrt())


def _floor(spare: Tensor, other: Gaussian, n: int, seed: int) -> float:
    return to_gaussian(sets.stand_in(spare, n, seed), other)


def _floor_inf(spare: Tensor, other: Gaussian, n: int, seed: int) -> float:
    return extrapolate(sets.stand_in(spare, n, seed), other, seed)[0]


@dataclass(kw_only=True, eq=False)
class FD(Metric):
    """`fd_<features>`, or `fid`; and `fd_inf_<features>`, or `fid_inf`.

    The floor needs as many real pictures as there are samples: the distance falls with their
    number, by about (d / n + (d^2 + d) / 4n) times the variance of a feature.

    Args:
        reference: train, held_out, both.
        floor: whether to measure real pictures in the samples' place.
        infinity: whether to extrapolate to infinitely many samples; only where a fifth of them is
            more than there are features.
        groups: parts of the samples that the jackknife leaves out in turn; its interval.
    """

    needs = frozenset({"features"})
    least = LEAST

    reference: sets.Reference = "both"
    floor: bool = True
    infinity: bool = True
    groups: int = 20

    def __post_init__(self) -> None:
        check_limits("metric.fd", reference=self.reference, groups=self.groups)
        self._memo = sets.Memo(most=6)
        self._warned = False

    @property
    def compares_with(self) -> frozenset[str]:
        return sets.roles(self.reference)

    def figures(self, features: Features) -> dict[str, Better]:
        names = [_name(features, ""), *([_name(features, "_inf")] if self.infinity else [])]
        return dict.fromkeys(names, "lower")

    def measure(self, material: Material) -> Sequence[Score]:
        distances, extrapolated = [], []
        for pair in sets.comparisons(material, "fd", self.reference, self.least):
            other = self._memo(Gaussian.of, pair.real)
            fake, n = pair.fake, len(pair.fake)
            self._warn(n, fake.shape[1])
            without = without_groups(fake, other, self.groups, material.seed)
            spread = sets.jackknife_error(without)
            enough = self.floor and pair.spare is not None and len(pair.spare) >= n
            place = (pair.spare, other, n, material.seed)
            floor = self._memo(_floor, *place) if enough else None
            half = student_95(min(self.groups, n) - 1) * spread
            value = to_gaussian(fake, other)
            score = self._score("", material, pair.reference, n, value, half, floor)
            distances.append(replace(score, without=without.tolist()))
            if self.infinity and n // SMALLEST > fake.shape[1]:
                value, of_line = extrapolate(fake, other, material.seed)
                half = student_95(min(self.groups, n) - 1) * math.hypot(spread, of_line)
                floor = self._memo(_floor_inf, *place) if enough else None
                score = self._score("_inf", material, pair.reference, n, value, half, floor)
                extrapolated.append(score)
        return distances + extrapolated

    def _score(
        self,
        suffix: str,
        material: Material,
        reference: str,
        n: int,
        value: float,
        half: float,
        floor: float | None,
    ) -> Score:
        name = _name(sets.needed_features(material, "fd"), suffix)
        return Score(
            name,
            value,
            n,
            "lower",
            low=value - half if suffix else max(0.0, value - half),  # a distance is not negative
            high=value + half,
            floor=floor,
            reference=reference,
        )

    def _warn(self, n: int, d: int) -> None:
        if n <= d and not self._warned:
            logger.warning(
                "metric=fd: %s samples for %s features: the distance is far above that of many "
                "samples. Compare it with its floor and at equal n only, or read metric=kd.",
                f"{n:,}",
                f"{d:,}",
            )
            self._warned = True

    def passport(self) -> dict[str, object]:
        return {"name": "fd", "version": 1, "groups": self.groups}


def _name(features: Features, suffix: str) -> str:
    return f"fid{suffix}" if sets.is_original(features) else f"fd{suffix}_{features.name}"
