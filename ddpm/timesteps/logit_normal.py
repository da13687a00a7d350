"""The middle of the process more often than its ends."""

import torch
from torch import Tensor

from ddpm.limits.parts import check_limits
from ddpm.timesteps.base import Timesteps


class LogitNormal(Timesteps):
    """logit(u) ~ N(mean, std^2) for the place u in (0, 1) of t among 0..T-1: section 3.1 of Esser
    et al. 2024 (arXiv:2403.03206). With schedule=rectified, u is the time of the straight path.

    t has the probability of u between t / T and (t + 1) / T.

    Args:
        mean: below 0: more often nearly clean images.
        std: above 0.
    """

    def __init__(self, *, mean: float, std: float, stratified: bool = False) -> None:
        super().__init__(stratified=stratified)
        check_limits("timesteps", std=std)
        self.mean, self.std = mean, std

    def probabilities(self, snr: Tensor) -> Tensor:
        edges = torch.linspace(0, 1, len(snr) + 1, dtype=snr.dtype, device=snr.device)
        return torch.special.ndtr((edges.logit() - self.mean) / self.std).diff()
