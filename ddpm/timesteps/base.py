"""How t is drawn in training."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Timesteps(nn.Module, ABC):
    """A distribution over 0..T-1, which `prepare` computes for a process.

    A draw is a function of the generator and of this module's state. What is learned is in buffers
    of the state dict, and so in every checkpoint.

    Args:
        stratified: draw one t from each of B parts of equal probability instead of B independent
            ones: the distribution is the same, and the mean of a batch varies less.
    """

    # Whether it learns: losses are then multiplied by `loss_weights`, and `update` sees them.
    learns = False
    uniform = False
    cumulative: Tensor

    def __init__(self, *, stratified: bool = False) -> None:
        super().__init__()
        self.stratified = stratified
        self.register_buffer("cumulative", torch.ones(0), persistent=False)

    @abstractmethod
    def probabilities(self, snr: Tensor) -> Tensor:
        """Probability of each t, from the signal-to-noise ratios of the process: two of (T,),
        float64."""

    def prepare(self, snr: Tensor) -> None:
        """Compute the distribution for a process; called again whenever its SNRs (T,) change."""
        cumulative = cumulate(self.probabilities(snr.double()))
        self.cumulative = cumulative.to(torch.float32).to(self.cumulative.device)

    def forward(
        self, size: int, T: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Tensor:
        """Steps of 0..T-1: (size,), int64."""
        u = self.uniforms(size, device, generator)
        return torch.searchsorted(self.cumulative, u, right=True).clamp(max=T - 1)

    def uniforms(
        self, size: int, device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """Uniform numbers in [0, 1), one in each `size`-th part if stratified: (size,), float32."""
        u = torch.rand(size, generator=generator, device=device)
        return (torch.arange(size, device=device) + u) / size if self.stratified else u

    def loss_weights(self, t: Tensor) -> Tensor:
        """Factors of the losses at t (B,), which make their mean an unbiased estimate of the mean
        over all t, if the distribution `learns`: (B,), float32."""
        raise NotImplementedError

    def update(self, t: Tensor, losses: Tensor, skip: Tensor) -> None:
        """Learn from the losses (B,) of a step at t (B,), of all ranks, unless `skip`, a scalar."""
        raise NotImplementedError


def cumulate(probabilities: Tensor) -> Tensor:
    """Sums of the probabilities 0..t, scaled so that the last is 1: two of (T,)."""
    sums = probabilities.cumsum(0)
    return sums / sums[-1]
