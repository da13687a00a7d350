"""The exponential moving average of a network's weights."""

import copy

import torch
from torch import nn


class EMA:
    """A shadow network whose weights are a moving average of those of the network in training.

    ema <- d ema + (1 - d) weights after each step, with d = min(decay, (1 + n) / (ramp + n)) at the
    n-th update: without the ramp, a tenth of the random initialisation would still be in the
    average after 23,000 steps at decay 0.9999. ramp = 1 is no ramp, as Ho et al. trained.

    Args:
        model: the network before it is compiled or wrapped; copied.
        decay: d in [0, 1).
        ramp: at least 1.
    """

    def __init__(self, model: nn.Module, decay: float, ramp: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.ramp = ramp
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """Average the weights that this network now has: sharing one out makes others of them."""
        # By position, not by name: wrappers such as compile and DDP rename the parameters.
        self.weights = list(self.model.parameters())
        self.sources = list(model.parameters())
        self.buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    def decay_at(self, n: int) -> float:
        """d at the n-th update, n = 0, 1, ..."""
        return min(self.decay, (1 + n) / (self.ramp + n))

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Average in the network's weights after its n-th step, n = 0, 1, ..."""
        torch._foreach_lerp_(self.weights, self.sources, 1 - self.decay_at(n))
        for shadow, buffer in self.buffers:
            shadow.copy_(buffer)
