"""The cosine noise schedule of Improved DDPM."""

import math

import torch
from torch import Tensor

from ddpm.limits.parts import check_limits
from ddpm.schedules.base import betas_from_alphas_cumprod, rescale_zero_terminal_snr


def cosine(
    T: int = 1000, s: float = 0.008, max_beta: float = 0.999, *, zero_terminal_snr: bool = False
) -> Tensor:
    """Betas whose alphas_cumprod falls like a squared cosine: (T,), float64.

    alphas_cumprod(t) = f(t) / f(0), f(t) = cos^2((t / T + s) / (1 + s) * pi / 2), and
    beta_t = min(1 - f(t + 1) / f(t), max_beta): Eq. 17, Nichol and Dhariwal 2021
    (arXiv:2102.09672), where s = 0.008 and max_beta = 0.999.

    Args:
        T: steps.
        s: offset of t; without it the first betas would be nearly 0.
        max_beta: upper limit of the betas.
        zero_terminal_snr: rescale the clipped betas so that x_T is pure noise; the last is 1.

    Raises:
        InputError: an argument is out of range.
    """
    check_limits("schedule", T=T, s=s, max_beta=max_beta)
    t = torch.arange(T + 1, dtype=torch.float64)
    f = torch.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2  # (T + 1,)
    betas = betas_from_alphas_cumprod(f, max_beta)
    return rescale_zero_terminal_snr(betas) if zero_terminal_snr else betas
