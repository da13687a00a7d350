"""The sigmoid noise schedule of Recurrent Interface Networks."""

import torch
from torch import Tensor

from ddpm.errors import InputError
from ddpm.limits.parts import check_limits
from ddpm.schedules.base import betas_from_alphas_cumprod, rescale_zero_terminal_snr


def sigmoid(
    T: int = 1000,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    max_beta: float = 0.999,
    *,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """Betas whose alphas_cumprod falls like a piece of a sigmoid: (T,), float64.

    alphas_cumprod(t) = (v(T) - v(t)) / (v(T) - v(0)), v(t) = sigmoid((start + (end - start) t / T)
    / tau), and beta_t = min(1 - alphas_cumprod(t + 1) / alphas_cumprod(t), max_beta): Jabri et al.
    2022 (arXiv:2212.11972), where start = -3, end = 3 and tau = 1.

    Args:
        T: steps.
        start: position on the sigmoid at t = 0.
        end: position on the sigmoid at t = T.
        tau: temperature; above 1 the curve is straighter, below 1 steeper in the middle.
        max_beta: upper limit of the betas; without it the last one is 1.
        zero_terminal_snr: rescale the clipped betas so that x_T is pure noise; the last is 1.

    Raises:
        InputError: an argument is out of range, or the curve is flat in float64.
    """
    check_limits("schedule", T=T, tau=tau, max_beta=max_beta)
    if not start < end:
        raise InputError(f"schedule.start={start}, schedule.end={end}: must be rising.")
    t = torch.arange(T + 1, dtype=torch.float64)
    v = ((start + (end - start) * (t / T)) / tau).sigmoid()  # (T + 1,)
    betas = betas_from_alphas_cumprod(v[-1] - v, max_beta)
    return rescale_zero_terminal_snr(betas) if zero_terminal_snr else betas
