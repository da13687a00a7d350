"""What the fixed schedules share: their ends, and betas from alphas_cumprod."""

import logging

import torch
from torch import Tensor

from ddpm.errors import InputError
from ddpm.limits.parts import check_limits

logger = logging.getLogger(__name__)
MAX_TERMINAL_SIGNAL = 0.01  # alphas_cumprod at T - 1; above it x_T is visibly not N(0, I)


def scaled_ends(
    name: str, T: int, beta_start: float, beta_end: float, *, rescale: bool
) -> tuple[float, float]:
    """The first and the last beta, multiplied by 1000 / T if `rescale`.

    So ends chosen for 1000 steps (Ho et al. 2020) lead to noise for every T: Nichol and Dhariwal
    2021 (arXiv:2102.09672).

    Raises:
        InputError: a beta would not lie between 0 and 1, or the betas would fall.
    """
    check_limits("schedule", T=T)
    scale = 1000 / T if rescale else 1.0
    if not 0 < beta_start <= beta_end or scale * beta_end >= 1:
        limit = "beta_end * 1000 / T < 1" if rescale else "beta_end < 1"
        raise InputError(
            f"schedule.beta_start={beta_start}, schedule.beta_end={beta_end}, schedule.T={T}: "
            f"{name} needs 0 < beta_start <= beta_end and {limit}."
        )
    return scale * beta_start, scale * beta_end


def with_ends(betas: Tensor, *, rescaled: bool, zero_terminal_snr: bool) -> Tensor:
    """Betas between scaled ends, with pure noise at the end if `zero_terminal_snr`. Otherwise, warn
    if betas that were not rescaled leave x_T far from it, where sampling starts."""
    if zero_terminal_snr:
        return rescale_zero_terminal_snr(betas)
    signal = (1 - betas).prod().item()
    if not rescaled and signal > MAX_TERMINAL_SIGNAL:
        logger.warning(
            "schedule.rescale=false, schedule.T=%d: x_T keeps %.3g of the signal's power "
            "(alphas_cumprod), but sampling starts from pure noise",
            len(betas),
            signal,
        )
    return betas


def betas_from_alphas_cumprod(alphas_cumprod: Tensor, max_beta: float) -> Tensor:
    """min(1 - alphas_cumprod(t + 1) / alphas_cumprod(t), max_beta): (T + 1,) -> (T,).

    Args:
        alphas_cumprod: float64, beginning with 1 for the image itself; a common factor cancels.
        max_beta: upper limit, which keeps the last betas below 1 where alphas_cumprod ends in 0.

    Raises:
        InputError: alphas_cumprod does not fall at each step, in float64.
    """
    betas = (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=max_beta)
    if not (betas > 0).all():
        raise InputError(
            "schedule: with these options the curve is so steep or so flat that float64 cannot "
            "distinguish its steps; each beta must be above 0."
        )
    return betas


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """The same schedule with pure noise at the end: (T,) -> (T,); first beta unchanged, last 1.

    sqrt(alphas_cumprod) is shifted and scaled so that its last value is exactly 0 and its first
    stays: Algorithm 1, Lin et al. 2023 (arXiv:2305.08891). At t = T - 1 x_t is then independent of
    x_0, which a network that predicts eps cannot recover.

    Raises:
        InputError: T is below 2.
    """
    if len(betas) < 2:
        raise InputError("schedule.zero_terminal_snr=true, schedule.T=1: T must be at least 2.")
    signal = (1 - betas).cumprod(0).sqrt()
    signal = signal - signal[-1]  # its factor, signal[0] / (signal[0] - signal[-1]), cancels below
    return torch.cat([betas[:1], betas_from_alphas_cumprod(signal**2, max_beta=1.0)])
