"""What the fixed schedules share: their ends, and the way from alphas_cumprod to betas."""

import logging

import torch
from torch import Tensor

from ddpm.errors import InputError

logger = logging.getLogger(__name__)
MOST_STEPS = 100_000  # a number in somebody's checkpoint must not cost all memory
SIGNAL_LEFT = 0.01  # alphas_cumprod at T - 1 from which on x_T is visibly not N(0, I)


def check_T(T: int) -> None:
    if not 1 <= T <= MOST_STEPS:
        raise InputError(f"schedule.T={T}: must be a whole number from 1 to {MOST_STEPS}.")


def scaled_ends(
    name: str, T: int, beta_start: float, beta_end: float, *, rescale: bool
) -> tuple[float, float]:
    """The first and the last beta, multiplied by 1000 / T if `rescale`.

    Ends that suit 1000 steps (Ho et al. 2020) so end in noise whatever T is: Nichol and Dhariwal
    2021 (arXiv:2102.09672).

    Raises:
        InputError: a beta would not lie between 0 and 1, or they would fall; `name` is in it.
    """
    check_T(T)
    scale = 1000 / T if rescale else 1.0
    if not 0 < beta_start <= beta_end or scale * beta_end >= 1:
        limit = "beta_end * 1000 / T < 1" if rescale else "beta_end < 1"
        raise InputError(
            f"schedule.beta_start={beta_start}, schedule.beta_end={beta_end}, schedule.T={T}: "
            f"{name} needs 0 < beta_start <= beta_end and {limit}."
        )
    return scale * beta_start, scale * beta_end


def warn_of_signal(betas: Tensor) -> None:
    """Say in one line if ends that were not rescaled leave x_T far from the noise that sampling
    starts from."""
    left = (1 - betas).prod().item()
    if left > SIGNAL_LEFT:
        logger.warning(
            "schedule.rescale=false, schedule.T=%d: x_T keeps %.3g of the signal's power "
            "(alphas_cumprod), but sampling starts from pure noise",
            len(betas),
            left,
        )


def betas_of(alphas_cumprod: Tensor, max_beta: float) -> Tensor:
    """min(1 - alphas_cumprod(t + 1) / alphas_cumprod(t), max_beta): (T + 1,) -> (T,).

    Args:
        alphas_cumprod: float64, from 1 for the image itself; any factor on all of it cancels.
        max_beta: keeps the last betas away from 1 where alphas_cumprod ends in 0.

    Raises:
        InputError: it does not fall from each step to the next, so far as float64 can tell.
    """
    betas = (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=max_beta)
    if not (betas > 0).all():
        raise InputError(
            "schedule: these options make a curve so steep or so flat that float64 cannot tell its "
            "steps apart; each beta must be above 0."
        )
    return betas


def zero_terminal(betas: Tensor) -> Tensor:
    """The same schedule, ending in pure noise: (T,) -> (T,), the first as it was, the last 1.

    sqrt(alphas_cumprod) is shifted and scaled so that its last value is exactly 0 and its first
    stays: Algorithm 1, Lin et al. 2023 (arXiv:2305.08891). At t = T - 1 x_t then says nothing of
    x_0, and a network cannot be asked for the noise in it.

    Raises:
        InputError: there are not two steps.
    """
    if len(betas) < 2:
        raise InputError("schedule.zero_terminal_snr=true, schedule.T=1: T must be at least 2.")
    signal = (1 - betas).cumprod(0).sqrt()
    signal = signal - signal[-1]  # its factor, signal[0] / (signal[0] - signal[-1]), cancels below
    return torch.cat([betas[:1], betas_of(signal**2, max_beta=1.0)])
