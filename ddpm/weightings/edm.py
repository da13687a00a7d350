"""The weights of EDM."""

import torch
from torch import Tensor

from ddpm.limits.parts import check_limits
from ddpm.objectives.base import Objective
from ddpm.objectives.edm import EDM
from ddpm.weightings.base import Weighting, bounded


class EDMWeights(Weighting):
    """(s^2 + sigma_data^2) / (s sigma_data)^2 = SNR + 1 / sigma_data^2 on the error of x_0, with
    s = sigma / alpha: Table 1 of Karras et al. 2022 (arXiv:2206.00364).

    With objective=edm these are equal weights of the network's errors, for the objective's own
    sigma_data. For a network that predicts x_0 they grow with the SNR and are bounded as in
    `LossOf`.

    Args:
        sigma_data: standard deviation of x_0, for other objectives.
        max_weight: bound of the weights; None: no bound.
    """

    def __init__(self, *, sigma_data: float = 0.5, max_weight: float | None = 1000.0) -> None:
        check_limits("weighting", sigma_data=sigma_data, max_weight=max_weight)
        self.sigma_data, self.max_weight = sigma_data, max_weight

    def weights(self, snr: Tensor, objective: Objective) -> Tensor:
        if isinstance(objective, EDM):
            return torch.ones_like(snr)
        wanted = snr + 1 / self.sigma_data**2
        return bounded(wanted / objective.error_scale(snr), self.max_weight)
