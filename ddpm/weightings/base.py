"""How much each timestep counts in the loss, and how an error is measured."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ddpm.errors import InputError, nearest
from ddpm.objectives.base import Objective

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.smooth_l1_loss,  # squared below 1, halved, and linear above
}


class Weighting(ABC):
    """Weights of timesteps.

    Args:
        loss_type: "mse" (Ho et al. 2020), "l1" or "huber".
    """

    def __init__(self, *, loss_type: str = "mse") -> None:
        if loss_type not in LOSSES:
            hint = nearest(str(loss_type), LOSSES)
            raise InputError(
                f"weighting.loss_type={loss_type}: must be one of {', '.join(LOSSES)}.{hint}"
            )
        self.loss_type = loss_type

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean error of each image, not weighted yet: two of (B, C, H, W) -> (B,)."""
        return LOSSES[self.loss_type](output, target, reduction="none").flatten(1).mean(1)

    @abstractmethod
    def weights(self, snr: Tensor, objective: Objective) -> Tensor:
        """What the errors of `objective` count at these signal-to-noise ratios: like snr."""
