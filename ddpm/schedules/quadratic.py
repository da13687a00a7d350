"""The quadratic noise schedule of the DDPM code."""

import torch
from torch import Tensor

from ddpm.schedules.base import scaled_ends, with_ends


def quadratic(
    T: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    *,
    rescale: bool = True,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """Betas whose square roots grow linearly: (T,), float64.

    beta_t = (sqrt(beta_start) + t / (T - 1) (sqrt(beta_end) - sqrt(beta_start)))^2: "quad" in the
    code of Ho et al. 2020 (arXiv:2006.11239). Less noise early than `linear`, as much at the end.

    Args:
        T: steps.
        beta_start: the first beta, for T = 1000.
        beta_end: the last beta, for T = 1000.
        rescale: multiply both by 1000 / T, so that x_T is noise for every T, as in `linear`.
        zero_terminal_snr: rescale the betas so that x_T is pure noise; the last is 1.

    Raises:
        InputError: the betas would not lie between 0 and 1.
    """
    start, end = scaled_ends("quadratic", T, beta_start, beta_end, rescale=rescale)
    betas = torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2
    return with_ends(betas, rescaled=rescale, zero_terminal_snr=zero_terminal_snr)
