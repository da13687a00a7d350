"""Noise levels that are log-normal, whatever the schedule."""

import torch
from torch import Tensor

from ddpm.limits.parts import check_limits
from ddpm.timesteps.base import Timesteps


class LogNormal(Timesteps):
    """ln(sigma / alpha) ~ N(mean, std^2), rounded to the nearest step: section 5 of Karras et al.
    2022 (arXiv:2206.00364). Levels beyond the ends of the schedule count as its ends.

    Args:
        mean: -1.2 in the paper.
        std: 1.2 in the paper.
    """

    def __init__(self, *, mean: float, std: float, stratified: bool = False) -> None:
        super().__init__(stratified=stratified)
        check_limits("timesteps", std=std)
        self.mean, self.std = mean, std

    def probabilities(self, snr: Tensor) -> Tensor:
        level = -0.5 * snr.log()  # ln(sigma / alpha), rising
        level = level.clamp(max=level[level.isfinite()].max())  # of pure noise it is infinite
        edges = (level[1:] + level[:-1]) / 2
        below = torch.special.ndtr((edges - self.mean) / self.std)
        ends = below.new_tensor([0.0, 1.0])
        return below.diff(prepend=ends[:1], append=ends[1:])
