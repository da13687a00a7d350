"""Inception Score, and the same of other classifiers: are pictures clear, and of many classes?"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.errors import InputError
from ddpm.features.base import Features
from ddpm.limits.parts import check_limits
from ddpm.metrics import sets
from ddpm.metrics.base import Better, Material, Metric, Score
from ddpm.statistics.student import student_95


def inception_score(log_probs: Tensor) -> float:
    """exp of the mean KL(p(y | x) || p(y)), in 1..K: Salimans et al. 2016 (arXiv:1606.03498).

    Args:
        log_probs: (n, K), the logarithms of p(y | x); -inf is allowed.
    """
    log_p = log_probs.double()
    p = log_p.exp()
    marginal = p.mean(0)
    entropy = torch.special.entr(p).sum(1).mean()
    information = float(torch.special.entr(marginal).sum() - entropy)
    return math.exp(max(0.0, information))  # rounding may leave less


class InceptionScore(Metric):
    """`is` with Inception and the legacy resize, else `classifier_score_<features>`.

    It knows no reference. It grows with the pictures of a split, so its floor needs as many
    held-out pictures as there are samples.

    Args:
        splits: the mean over so many parts of the samples, shuffled by seed; papers: 10.
        floor: whether to measure held-out pictures in the samples' place.
    """

    needs = frozenset({"features", "classes"})

    def __init__(self, *, splits: int = 10, floor: bool = True) -> None:
        check_limits("metric.is", splits=splits)
        self.splits, self.floor = splits, floor
        self.least = 2 * splits

    def figures(self, features: Features) -> dict[str, Better]:
        return {_name(features): "higher"}

    def measure(self, material: Material) -> Sequence[Score]:
        features = sets.needed_features(material, "is")
        if features.num_classes is None:
            raise InputError(f"metric=is: needs features with classes; {features.name} has none.")
        samples = sets.samples_of(material, "is", self.least)
        n = len(samples)
        x = sets.features_of(samples, "sampled", "is", self.least)
        scores = self._of_splits(features, x, material.seed)
        mean, low, high = float(scores.mean()), None, None
        if self.splits > 1:
            error = float(scores.std()) / math.sqrt(self.splits)
            half = student_95(self.splits - 1) * error
            low, high = max(1.0, mean - half), mean + half
        floor = None
        held_out = material.held_out
        if self.floor and held_out is not None and len(held_out) >= n:
            real = sets.features_of(held_out, "held-out", "is", n)
            place = sets.stand_in(real, n, material.seed)
            floor = float(self._of_splits(features, place, material.seed).mean())
        name, unit = _name(features), "classes"
        return [Score(name, mean, n, "higher", unit=unit, low=low, high=high, floor=floor)]

    def _of_splits(self, features: Features, x: Tensor, seed: int) -> Tensor:
        """The score of each split of the shuffled features: (splits,), float64."""
        log_probs = features.log_probs(x)[sets.draw(len(x), len(x), seed, "is splits")]
        parts = [
            log_probs[i * len(x) // self.splits : (i + 1) * len(x) // self.splits]
            for i in range(self.splits)
        ]
        return torch.tensor([inception_score(part) for part in parts], dtype=torch.float64)

    def passport(self) -> dict[str, object]:
        return {"name": "is", "version": 1, "splits": self.splits}


def _name(features: Features) -> str:
    return "is" if sets.is_original(features) else f"classifier_score_{features.name}"
