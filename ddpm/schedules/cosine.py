"""The cosine noise schedule of Improved DDPM."""

import math

import torch
from torch import Tensor

from ddpm.errors import InputError


def cosine(T: int, s: float, max_beta: float) -> Tensor:
    """Betas whose alphas_cumprod falls like a squared cosine: (T,), float64.

    alphas_cumprod(t) = f(t) / f(0), f(t) = cos^2((t / T + s) / (1 + s) * pi / 2), and
    beta_t = min(1 - f(t + 1) / f(t), max_beta): Eq. 17, Nichol and Dhariwal 2021
    (arXiv:2102.09672), where s = 0.008 and max_beta = 0.999.
    """
    if s < 0 or not 0 < max_beta < 1:
        raise InputError(
            f"schedule.s={s}, schedule.max_beta={max_beta}: cosine needs s >= 0, 0 < max_beta < 1."
        )
    t = torch.arange(T + 1, dtype=torch.float64)
    f = torch.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2  # (T + 1,)
    return (1 - f[1:] / f[:-1]).clamp(max=max_beta)
