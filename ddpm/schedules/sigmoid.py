"""The sigmoid noise schedule of Recurrent Interface Networks."""

import torch
from torch import Tensor

from ddpm.errors import InputError
from ddpm.schedules.base import betas_of, check_T, zero_terminal


def sigmoid(
    T: int,
    start: float,
    end: float,
    tau: float,
    max_beta: float,
    *,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """Betas whose alphas_cumprod falls like a piece of a sigmoid: (T,), float64.

    alphas_cumprod(t) = (v(T) - v(t)) / (v(T) - v(0)), v(t) = sigmoid((start + (end - start) t / T)
    / tau), and beta_t = min(1 - alphas_cumprod(t + 1) / alphas_cumprod(t), max_beta): Jabri et al.
    2022 (arXiv:2212.11972), where start = -3, end = 3 and tau = 1.

    Args:
        T: steps.
        start: where on the sigmoid the images stand.
        end: where the noise stands.
        tau: temperature; above 1 the curve is straighter, below 1 steeper in the middle.
        max_beta: the betas are clipped here; alphas_cumprod(T) is 0 before.
        zero_terminal_snr: shift the clipped betas so that nothing of x_0 is left in x_T; the last
            is 1.

    Raises:
        InputError: these are no such numbers, or make a curve that float64 finds flat.
    """
    check_T(T)
    if not start < end or not tau > 0 or not 0 < max_beta < 1:
        raise InputError(
            f"schedule.start={start}, schedule.end={end}, schedule.tau={tau}, "
            f"schedule.max_beta={max_beta}: sigmoid needs start < end, tau > 0, 0 < max_beta < 1."
        )
    t = torch.arange(T + 1, dtype=torch.float64)
    v = ((start + (end - start) * (t / T)) / tau).sigmoid()  # (T + 1,)
    betas = betas_of(v[-1] - v, max_beta)
    return zero_terminal(betas) if zero_terminal_snr else betas
