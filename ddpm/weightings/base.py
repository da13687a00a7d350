"""Weights of timesteps in the loss."""

from abc import ABC, abstractmethod

from torch import Tensor

from ddpm.objectives.base import Objective


class Weighting(ABC):
    """Weights as a function of the signal-to-noise ratio."""

    @abstractmethod
    def weights(self, snr: Tensor, objective: Objective) -> Tensor:
        """Weights of the errors of `objective` at these signal-to-noise ratios: like snr."""

    def describe(self, snr: Tensor, objective: Objective) -> str | None:
        """A line on what a run should know about these weights, if anything."""
        return None


def bounded(weights: Tensor, max_weight: float | None) -> Tensor:
    """Weights of at most `max_weight`; None: as they are."""
    return weights if max_weight is None else weights.clamp(max=max_weight)
