"""Weights by the signal-to-noise ratio, clipped at gamma."""

import torch
from torch import Tensor

from ddpm.limits.parts import check_limits
from ddpm.objectives.base import Objective
from ddpm.weightings.base import Weighting


class MinSNR(Weighting):
    """min(SNR, gamma) on the error of x_0: Min-SNR-gamma, Hang et al. 2023 (arXiv:2303.09556).

    On the error of eps that is min(SNR, gamma) / SNR, on that of v min(SNR, gamma) / (SNR + 1).
    Where the SNR is exactly 0 the weight is 1, so that the last step of a zero-terminal-SNR
    schedule is trained.
    """

    def __init__(self, *, gamma: float = 5.0) -> None:
        check_limits("weighting", gamma=gamma)
        self.gamma = gamma

    def weights(self, snr: Tensor, objective: Objective) -> Tensor:
        weights = snr.clamp(max=self.gamma) / objective.error_scale(snr)
        return torch.where(snr > 0, weights, 1.0)
