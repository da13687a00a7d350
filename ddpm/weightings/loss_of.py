"""Weights that make the loss of one prediction that of another."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm.limits.parts import check_limits
from ddpm.objectives.base import Objective
from ddpm.objectives.eps import Eps
from ddpm.objectives.v import V
from ddpm.objectives.velocity import Velocity
from ddpm.objectives.x_0 import X0
from ddpm.weightings.base import Weighting, bounded

QUANTITIES: dict[str, Callable[[], Objective]] = {
    "eps": Eps,
    "x_0": X0,
    "v": V,
    "velocity": Velocity,
}


class LossOf(Weighting):
    """The squared error of `quantity`, whatever the network predicts.

    All predictions are affine in each other at a given x_t, so the errors differ by a factor that
    depends on the noise level alone (Salimans & Ho 2022, arXiv:2202.00512, section 4). Where the
    factor is 0, at pure noise, the weight is 1, so that the last step is trained.

    The factor may exceed 10^6: a network that predicts x_0 would have to copy nearly clean images
    to three digits, and one that predicts eps to find the noise in pure noise. So the weight is
    bounded. Up to a bound of 1000, an error of 0.03 of the output counts no more than a prediction
    that knows nothing.

    Args:
        quantity: eps, x_0, v or velocity.
        max_weight: bound of the weights; None: no bound.
    """

    def __init__(self, *, quantity: str, max_weight: float | None = 1000.0) -> None:
        check_limits("weighting", quantity=quantity, max_weight=max_weight)
        self.quantity = QUANTITIES[quantity]()
        self.max_weight = max_weight

    def weights(self, snr: Tensor, objective: Objective) -> Tensor:
        weights = bounded(self._factor(snr, objective), self.max_weight)
        return torch.where(weights > 0, weights, 1.0)

    def describe(self, snr: Tensor, objective: Objective) -> str | None:
        if self.max_weight is None:
            return None
        factor = self._factor(snr.double(), objective)
        bounded = int((factor > self.max_weight).sum())
        if not bounded:
            return None
        return (
            f"bounded by weighting.max_weight={self.max_weight:g} at {bounded} of {len(snr)} "
            f"steps, where they would be up to {factor.max().item():.3g}"
        )

    def _factor(self, snr: Tensor, objective: Objective) -> Tensor:
        return self.quantity.error_scale(snr) / objective.error_scale(snr)
