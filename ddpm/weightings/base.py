"""Weights of timesteps in the loss."""

from abc import ABC, abstractmethod

from torch import Tensor

from ddpm.errors import InputError
from ddpm.objectives.base import Objective


class Weighting(ABC):
    """Weights as a function of the signal-to-noise ratio."""

    @abstractmethod
    def weights(self, snr: Tensor, objective: Objective) -> Tensor:
        """Weights of the errors of `objective` at these signal-to-noise ratios: like snr."""

    def describe(self, snr: Tensor, objective: Objective) -> str | None:
        """A line on what a run should know about these weights, if anything."""
        return None


def check_max_weight(max_weight: float | None) -> None:
    if max_weight is not None and not max_weight > 0:
        raise InputError(f"weighting.max_weight={max_weight}: must be above 0, or null.")


def bounded(weights: Tensor, max_weight: float | None) -> Tensor:
    """Weights of at most `max_weight`; None: as they are."""
    return weights if max_weight is None else weights.clamp(max=max_weight)
