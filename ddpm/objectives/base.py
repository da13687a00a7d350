"""What a network predicts, and how x_0 follows from it.

For x_t = alpha x_0 + sigma eps; independent of the schedule that alpha and sigma come from.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ddpm.limits.parts import check_limits

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.smooth_l1_loss,  # x^2 / 2 below 1, linear above
}


class Objective(ABC):
    """What the network predicts; all tensors broadcast to images (B, C, H, W).

    Args:
        learned_variance: whether the network has C more output channels, which interpolate the
            variance of a reverse step between its two extremes (Eq. 15 of Nichol & Dhariwal 2021,
            arXiv:2102.09672).
        vlb_weight: weight of the variational bound in the loss, which trains only these channels
            (lambda of the paper).
        loss_type: "mse" (Ho et al. 2020), "l1" or "huber".
    """

    needs_signal = False  # whether x_0 cannot be computed at alpha = 0
    measures = False  # whether `measure` must see images before training

    def __init__(
        self, *, learned_variance: bool = False, vlb_weight: float = 0.001, loss_type: str = "mse"
    ) -> None:
        check_limits("objective", loss_type=loss_type, vlb_weight=vlb_weight)
        self.learned_variance = learned_variance
        self.vlb_weight = vlb_weight
        self.loss_type = loss_type

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean error of each image, without weights of timesteps: two of (B, C, H, W) -> (B,)."""
        return LOSSES[self.loss_type](output, target, reduction="none").flatten(1).mean(1)

    def measure(self, x_0: Tensor) -> None:  # noqa: B027
        """Take what the objective needs from images x_0 (N, C, H, W)."""

    def describe(self) -> str:
        """The measured values, in a line."""
        return ""

    def after_loading(self) -> None:  # noqa: B027
        """Called when a state dict has been loaded."""

    def inputs(self, x_t: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of the network for x_t and t (B,): these two, unless the objective scales them."""
        return x_t, t

    @abstractmethod
    def target(self, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The output of a perfect network."""

    @abstractmethod
    def predict_x_0(self, x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x_0 from the network's output."""

    @abstractmethod
    def error_scale(self, snr: Tensor) -> Tensor:
        """Squared error of the output per squared error of x_0, at signal-to-noise ratio
        alpha^2 / sigma^2."""
