"""How much each timestep counts in the loss."""

from abc import ABC, abstractmethod

from torch import Tensor

from ddpm.objectives.base import Objective


class Weighting(ABC):
    """Weights of timesteps, by their signal-to-noise ratio."""

    @abstractmethod
    def weights(self, snr: Tensor, objective: Objective) -> Tensor:
        """What the errors of `objective` count at these signal-to-noise ratios: like snr."""
