"""Weights of timesteps in the loss."""

from abc import ABC, abstractmethod

from torch import Tensor

from ddpm.objectives.base import Objective


class Weighting(ABC):
    """Weights as a function of the signal-to-noise ratio."""

    @abstractmethod
    def weights(self, snr: Tensor, objective: Objective) -> Tensor:
        """Weights of the errors of `objective` at these signal-to-noise ratios: like snr."""
