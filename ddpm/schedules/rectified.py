"""The straight path of flow matching, scaled to variance 1."""

import torch
from torch import Tensor

from ddpm.errors import InputError
from ddpm.limits.parts import check_limits
from ddpm.schedules.base import betas_from_alphas_cumprod


def rectified(T: int = 1000, end: float = 1.0) -> Tensor:
    """Betas of the path (1 - u) x_0 + u eps, u evenly spaced up to `end`: (T,), float64.

    Rectified flow (Liu et al. 2023, arXiv:2209.03003) and flow matching (Lipman et al. 2023,
    arXiv:2210.02747). Divided by sqrt((1 - u)^2 + u^2), the path is x_t of variance 1 with
    alphas_cumprod = (1 - u)^2 / ((1 - u)^2 + u^2) at u_t = end (t + 1) / T.

    Args:
        T: steps.
        end: u of the last step. At 1, x_T is pure noise, and the last beta is 1.

    Raises:
        InputError: an argument is out of range.
    """
    check_limits("schedule", T=T)
    if not 0 < end <= 1:
        raise InputError(f"schedule.end={end}: must be above 0 and at most 1.")
    u = end * torch.arange(T + 1, dtype=torch.float64) / T
    signal, noise = (1 - u) ** 2, u**2
    return betas_from_alphas_cumprod(signal / (signal + noise), max_beta=1.0)
