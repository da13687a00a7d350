"""Equal weights."""

import torch
from torch import Tensor

from ddpm.objectives.base import Objective
from ddpm.weightings.base import Weighting


class Uniform(Weighting):
    """L_simple, Eq. 14 of Ho et al. 2020 (arXiv:2006.11239)."""

    def weights(self, snr: Tensor, objective: Objective) -> Tensor:
        return torch.ones_like(snr)
