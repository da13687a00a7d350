"""Perception prioritised weighting."""

import torch
from torch import Tensor

from ddpm.limits.parts import check_limits
from ddpm.objectives.base import Objective
from ddpm.objectives.eps import Eps
from ddpm.weightings.base import Weighting


class P2(Weighting):
    """1 / (k + SNR)^gamma on the error of eps: Choi et al. 2022 (arXiv:2204.00227), Eq. 8.

    Nearly clean images count less. Where the SNR is exactly 0 the weight is 1, as in `min_snr`.

    Args:
        gamma: above 0; 0.5 or 1 in the paper.
        k: above 0; 1 in the paper.
    """

    def __init__(self, *, gamma: float = 1.0, k: float = 1.0) -> None:
        check_limits("weighting", gamma=gamma, k=k)
        self.gamma, self.k = gamma, k

    def weights(self, snr: Tensor, objective: Objective) -> Tensor:
        factor = Eps().error_scale(snr) / objective.error_scale(snr)
        return torch.where(snr > 0, factor / (self.k + snr) ** self.gamma, 1.0)
