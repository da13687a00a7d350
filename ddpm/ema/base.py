"""Moving averages of a network's weights, which draw the images."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EMA(ABC):
    """Copies of the network in training, whose weights are moving averages of its weights.

    After each step, average <- d average + (1 - d) weights, where d is `decay_at` of the step.

    Args:
        model: the network, before it is compiled or wrapped; it is copied.
        lengths: of the averages, a different number for each; the first average, `model` below,
            draws previews and is validated.
    """

    snapshots: int = 0  # of the averages, stored over the run; 0: none

    def __init__(self, model: nn.Module, lengths: Sequence[float]) -> None:
        self.models = {
            str(length): copy.deepcopy(model).requires_grad_(False).eval() for length in lengths
        }
        self.model = next(iter(self.models.values()))
        self.others = dict(list(self.models.items())[1:])
        self.bind(model)

    @abstractmethod
    def decay_at(self, n: int, number: int = 0) -> float:
        """d of an average at the n-th update, n = 0, 1, ..."""

    def bind(self, model: nn.Module) -> None:
        """Bind to the model's current parameters; FSDP replaces the parameter objects."""
        # By position, not by name: wrappers such as compile and DDP rename the parameters.
        averages = self.models.values()
        self.averages: list[list[Tensor]] = [list(average.parameters()) for average in averages]
        self.weights = self.averages[0]
        self.sources: list[Tensor] = list(model.parameters())
        self.buffers = [
            pair
            for average in averages
            for pair in zip(average.buffers(), model.buffers(), strict=True)
        ]

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Update the averages after the n-th step, n = 0, 1, ..."""
        for number, weights in enumerate(self.averages):
            torch._foreach_lerp_(weights, self.sources, 1 - self.decay_at(n, number))
        for shadow, buffer in self.buffers:
            shadow.copy_(buffer)
