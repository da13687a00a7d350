"""Copies of training pictures among samples, by the nearest pictures in pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.errors import InputError
from ddpm.features.base import Features
from ddpm.images import make_grid
from ddpm.limits.parts import check_limits
from ddpm.metrics import sets
from ddpm.metrics.base import Better, Material, Metric, Score
from ddpm.metrics.nearest import Index, Nearest

CALIBRATION = 1000  # pictures that were not trained on, for the threshold
LEAST = 3  # pictures of each set; so that each has a second nearest one
RATIO = 1 / 3  # Yoon et al. 2023; Gu et al. 2023 (arXiv:2310.02664)


@dataclass(frozen=True)
class Pair:
    """A sample and the training picture nearest to it, for a gallery.

    Args:
        sample, train, held_out: rows of the material's pictures; held_out is the one nearest to
            the sample, None where there are none.
        distance, held_out_distance: grey levels, root mean square.
        copied: whether the distance is below the threshold.
    """

    sample: int
    train: int
    distance: float
    copied: bool
    held_out: int | None = None
    held_out_distance: float | None = None


@dataclass(frozen=True)
class Calibration:
    """Distances of pictures that were not trained on: (m,) float64, and the threshold."""

    nearest: Nearest
    threshold: float


class Copies(Metric):
    """`copied`, `copied_by_ratio`, `nearest_train`.

    copied: share of the samples nearer to a training picture than the nearest `quantile` of
    held-out pictures are; without held-out pictures, than training pictures are to each other.
    Copies of the paper's rule, copied_by_ratio: those whose distance is below 1/3 of that to the
    second nearest, which misses pictures that the training set holds twice. nearest_train: median
    distance, in grey levels.

    Args:
        quantile: share of the held-out pictures that the threshold flags.
        flips: whether mirrored pictures are copies.
        shifts: up to how many pixels shifted pictures are copies; as many pixels at the edges are
            not compared.
        gallery: number of pairs that `pairs` returns.
    """

    needs = frozenset({"images"})
    least = LEAST

    def __init__(
        self, *, quantile: float = 0.01, flips: bool = True, shifts: int = 1, gallery: int = 16
    ) -> None:
        check_limits("metric.copies", quantile=quantile, flips=flips)
        check_limits("metric.copies", shifts=shifts, gallery=gallery)
        self.quantile, self.flips, self.shifts = quantile, flips, shifts
        self.gallery = gallery
        self._memo, self._last = sets.Memo(), sets.Memo(most=1)
        self._measured: Material | None = None

    @property
    def compares_with(self) -> frozenset[str]:
        return sets.roles("both")

    def figures(self, features: Features) -> dict[str, Better]:
        return {"copied": "lower", "copied_by_ratio": "lower", "nearest_train": "neither"}

    def measure(self, material: Material) -> Sequence[Score]:
        found, calibration = self._search(material)
        self._measured, n = material, len(found.first)
        near, ratio = found.first < calibration.threshold, _by_ratio(found)
        real = calibration.nearest
        rules = {"copied": (near, real.first < calibration.threshold)}
        rules["copied_by_ratio"] = (ratio, _by_ratio(real))
        scores = []
        for name, (flagged, of_real) in rules.items():
            share, floor = float(flagged.double().mean()), float(of_real.double().mean())
            low, high = sets.wilson(share, n)
            scores.append(
                Score(
                    *(name, share, n, "lower", "share", low, high, floor, "train"),
                    without=sets.without_groups(flagged),
                )
            )
        low, high = _median_interval(found.first)
        scores.append(
            Score(
                "nearest_train",
                float(found.first.quantile(0.5)),
                n,
                "neither",
                unit="grey levels",
                low=low,
                high=high,
                floor=float(real.first.quantile(0.5)),
                reference="train",
            )
        )
        return scores

    def pairs(self, material: Material) -> list[Pair]:
        """The `gallery` samples nearest to training pictures, nearest first."""
        found, calibration = self._search(material)
        samples = sets.samples_of(material, "copies", self.least)
        order = found.first.argsort(stable=True)[: self.gallery]
        unseen = None
        if material.held_out is not None and len(order):
            index = self._memo(Index.of, material.held_out.images, self.shifts, self.flips)
            unseen = index.search(samples.images[order])
        return [
            Pair(
                sample=i,
                train=int(found.row[i]),
                distance=float(found.first[i]),
                copied=bool(found.first[i] < calibration.threshold),
                held_out=None if unseen is None else int(unseen.row[place]),
                held_out_distance=None if unseen is None else float(unseen.first[place]),
            )
            for place, i in enumerate(order.tolist())
        ]

    def pictures(self) -> dict[str, Tensor]:
        """A grid of the last measurement, whose columns are the pairs, the nearest on the left:
        sample, nearest training picture, nearest held-out picture."""
        material = self._measured
        if material is None or not (pairs := self.pairs(material)):
            return {}
        samples = sets.samples_of(material, "copies", self.least).images
        rows = [
            samples[[p.sample for p in pairs]],
            material.train.images[[p.train for p in pairs]],
        ]
        unseen = [p.held_out for p in pairs if p.held_out is not None]
        if material.held_out is not None:
            rows.append(material.held_out.images[unseen])
        return {"nearest": make_grid(torch.cat([row.cpu() for row in rows]), columns=len(pairs))}

    def _search(self, material: Material) -> tuple[Nearest, Calibration]:
        """The nearest training pictures of the samples, and the calibration by held-out pictures.

        Raises:
            InputError: too few pictures, or pictures of other sizes.
        """
        samples = sets.samples_of(material, "copies", self.least).images
        train = material.train.images
        held_out = None if material.held_out is None else material.held_out.images
        self._check(samples, train, held_out)
        index = self._memo(Index.of, train, self.shifts, self.flips)
        calibration = self._memo(self._calibrate, index, held_out, material.seed)
        return self._last(index.search, samples), calibration

    def _calibrate(self, index: Index, held_out: Tensor | None, seed: int) -> Calibration:
        pool = index.images if held_out is None else held_out
        chosen = sets.draw(len(pool), CALIBRATION, seed, "copies calibration").sort().values
        nearest = index.search(pool[chosen], skip=chosen if held_out is None else None)
        return Calibration(nearest, float(nearest.first.quantile(self.quantile)))

    def _check(self, samples: Tensor, train: Tensor, held_out: Tensor | None) -> None:
        for what, images in (("sampled", samples), ("training", train), ("held-out", held_out)):
            if images is None:
                continue
            if images.dtype != torch.uint8 or images.dim() != 4:
                raise InputError(
                    f"metric=copies: the {what} pictures must be uint8 (n, C, H, W), got "
                    f"{images.dtype} {tuple(images.shape)}."
                )
            if images.shape[1:] != train.shape[1:]:
                raise InputError(
                    f"metric=copies: {what} pictures of {_size(images)} cannot be compared with "
                    f"training pictures of {_size(train)}."
                )
            if len(images) < LEAST:
                raise InputError(
                    f"metric=copies: needs at least {LEAST} {what} pictures, got {len(images)}."
                )
        most = (min(train.shape[-2:]) - 1) // 2
        if self.shifts > most:
            raise InputError(
                f"metric.copies.shifts={self.shifts}: must be at most {most} for pictures of "
                f"{_size(train)}."
            )

    def passport(self) -> dict[str, object]:
        options = {"quantile": self.quantile, "flips": self.flips, "shifts": self.shifts}
        return {"name": "copies", "version": 1, **options}


def _by_ratio(found: Nearest) -> Tensor:
    return found.first < RATIO * found.second


def _median_interval(values: Tensor) -> tuple[float, float]:
    """95 % interval of the median from the order of the values."""
    n = len(values)
    half = sets.NORMAL_95 * n**0.5 / 2
    ordered = values.sort().values
    low, high = int(max(0, n / 2 - half)), int(min(n - 1, n / 2 + half))
    return float(ordered[low]), float(ordered[high])


def _size(images: Tensor) -> str:
    """32x32x1: height, width, channels."""
    channels, height, width = images.shape[1:]
    return f"{height}x{width}x{channels}"
