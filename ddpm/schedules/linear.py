"""The noise schedule of the DDPM paper."""

import torch
from torch import Tensor

from ddpm.schedules.base import scaled_ends, warn_of_signal, zero_terminal


def linear(
    T: int,
    beta_start: float,
    beta_end: float,
    *,
    rescale: bool = True,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """Betas that grow linearly from `beta_start` to `beta_end`: (T,), float64.

    Section 4 of Ho et al. 2020 (arXiv:2006.11239): 1e-4 to 0.02 in T = 1000 steps.

    Args:
        T: steps.
        beta_start: the first beta, for T = 1000.
        beta_end: the last beta, for T = 1000.
        rescale: multiply both by 1000 / T (Nichol and Dhariwal 2021, arXiv:2102.09672), so that
            x_T is noise whatever T is. Unscaled, 100 steps leave a third of the signal's power in
            x_T; a warning says so.
        zero_terminal_snr: shift the betas so that nothing of x_0 is left in x_T; the last is 1.

    Raises:
        InputError: the ends make no betas between 0 and 1.
    """
    start, end = scaled_ends("linear", T, beta_start, beta_end, rescale=rescale)
    betas = torch.linspace(start, end, T, dtype=torch.float64)
    if zero_terminal_snr:
        return zero_terminal(betas)
    if not rescale:
        warn_of_signal(betas)
    return betas
