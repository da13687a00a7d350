"""The noise schedule of the DDPM paper."""

import torch
from torch import Tensor

from ddpm.errors import InputError


def linear(T: int, beta_start: float, beta_end: float) -> Tensor:
    """Betas that grow linearly from `beta_start` to `beta_end`: (T,), float64.

    Section 4 of Ho et al. 2020 (arXiv:2006.11239): 1e-4 to 0.02 in T = 1000 steps. For another T
    both ends are scaled by 1000 / T (Nichol and Dhariwal 2021, arXiv:2102.09672), so that x_T is
    noise whatever T is. Unscaled, 100 steps would leave a third of the signal's power in x_T.
    """
    scale = 1000 / T
    betas = torch.linspace(scale * beta_start, scale * beta_end, T, dtype=torch.float64)
    if not 0 < beta_start <= beta_end or betas[-1] >= 1:
        raise InputError(
            f"schedule.beta_start={beta_start}, schedule.beta_end={beta_end}, schedule.T={T}: "
            "linear needs 0 < beta_start <= beta_end and beta_end * 1000 / T < 1."
        )
    return betas
