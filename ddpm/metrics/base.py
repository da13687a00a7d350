"""Metrics: what a set of samples, or a trained network, scores."""

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from ddpm.diffusion import GaussianDiffusion
from ddpm.features.base import Features

Need = Literal["features", "classes", "images", "network", "held_out"]
Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Pictures:
    """A set of pictures, in the order in which they were drawn.

    Args:
        images: uint8 (n, C, H, W).
        features: (n, d) float32, where the metric needs them.
        labels: (n,) int64, where the data have some.
    """

    images: Tensor
    features: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Material:
    """The input of metrics.

    Args:
        samples: generated pictures; None where only the network is measured.
        train: pictures that the network was trained on.
        held_out: pictures of the same data that it was not trained on; None: there are none.
        features: that all `Pictures.features` are of.
        network: the one that is measured, in evaluation mode: (x_t, t, labels) -> its output.
        diffusion: the process that the network was trained for.
        seed: of subsets, groups and noise. No ruler names it, so the program never changes it: two
            measurements by one ruler must take the same real pictures and steps.
        raw_network: the same network with the weights without averaging, if they are known.
        labelled: whether the network takes labels.
    """

    train: Pictures
    held_out: Pictures | None
    samples: Pictures | None = None
    features: Features | None = None
    network: nn.Module | None = None
    diffusion: GaussianDiffusion | None = None
    seed: int = 0
    raw_network: nn.Module | None = None
    labelled: bool = False


@dataclass(frozen=True)
class Score:
    """A number with its error.

    Args:
        name: fd_mnist, recall_inception, loss, ...
        low, high: bounds of a 95 % interval, where one is known.
        floor: the same score of held-out real pictures, as many as there are samples.
        n: pictures that were measured.
        reference: the pictures that they were compared with: train or held_out.
        without: the same score without each of some equal groups of the pictures, in turn: what
            two evaluations of equal seeds are compared by; None: not known.
    """

    name: str
    value: float
    n: int
    better: Better
    unit: str = ""
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    reference: str | None = None
    without: Sequence[float] | None = None


class Metric(ABC):
    """One file, one YAML file: conf/metric/<name>.yaml names the class and its options."""

    needs: ClassVar[frozenset[Need]]
    of_process: ClassVar[bool] = False  # compares only with equal schedule, objective, weighting
    least: int = 1  # the fewest samples that it measures, and real pictures to compare them with

    @property
    def compares_with(self) -> frozenset[str]:
        """Real pictures of which it needs `least`: train or held_out; or both, where there are
        held-out ones."""
        return frozenset()

    @abstractmethod
    def measure(self, material: Material) -> Sequence[Score]:
        """The scores, the most important one first.

        Raises:
            InputError: too few pictures, or something is missing that the metric needs.
        """

    def evaluations(self, T: int) -> int:
        """How many forward passes of the network it needs, for one picture each, at most."""
        return 0

    def figures(self, features: Features) -> dict[str, Better]:
        """The names of the scores of samples, and which values are better: what a training run can
        follow. `features` are the chosen ones."""
        return {}

    def pictures(self) -> dict[str, Tensor]:
        """After `measure`, pictures to look at, uint8 (C, H, W) each: {"nearest": ...} becomes
        nearest.png."""
        return {}

    def tables(self) -> dict[str, str]:
        """After `measure`, tables as CSV: {"loss_by_t": ...} becomes loss_by_t.csv."""
        return {}

    @abstractmethod
    def passport(self) -> dict[str, object]:
        """Name, options and version of the formula: with equal passports, equal material gets
        equal scores up to rounding."""


def to_csv(rows: Sequence[dict[str, float]]) -> str:
    """Rows of equal keys as CSV, numbers with seven digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(rows[0] if rows else [])
    for row in rows:
        writer.writerow(f"{v:.7g}" if isinstance(v, float) else v for v in row.values())
    return file.getvalue()
