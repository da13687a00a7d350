"""The exponential moving average of a network's weights."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """A copy of the network in training, whose weights are a moving average of its weights.

    ema <- d ema + (1 - d) weights after each step, with d = min(decay, (1 + n) / (ramp + n)) at the
    n-th update. Without the ramp (ramp = 1, as in Ho et al.) the random initialisation would still
    have a tenth of the weight after 23,000 steps at decay 0.9999.

    Args:
        model: the network, before it is compiled or wrapped; it is copied.
        decay: d in [0, 1).
        ramp: at least 1.
    """

    def __init__(self, model: nn.Module, decay: float, ramp: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.ramp = ramp
        self.bind(model)

    def bind(self, model: nn.Module) -> None:
        """Bind to the model's current parameters; FSDP replaces the parameter objects."""
        # By position, not by name: wrappers such as compile and DDP rename the parameters.
        self.weights: list[Tensor] = list(self.model.parameters())
        self.sources: list[Tensor] = list(model.parameters())
        self.buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    def decay_at(self, n: int) -> float:
        """d at the n-th update, n = 0, 1, ..."""
        return min(self.decay, (1 + n) / (self.ramp + n))

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Update the average after the n-th step, n = 0, 1, ..."""
        torch._foreach_lerp_(self.weights, self.sources, 1 - self.decay_at(n))
        for shadow, buffer in self.buffers:
            shadow.copy_(buffer)
