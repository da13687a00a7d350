"""The noise schedule of the DDPM paper."""

import torch
from torch import Tensor

from ddpm.schedules.base import scaled_ends, with_ends


def linear(
    T: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
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
            x_T is noise for every T. Without it, 100 steps leave a third of the signal's power in
            x_T, and a warning is logged.
        zero_terminal_snr: rescale the betas so that x_T is pure noise; the last is 1.

    Raises:
        InputError: the betas would not lie between 0 and 1.
    """
    start, end = scaled_ends("linear", T, beta_start, beta_end, rescale=rescale)
    betas = torch.linspace(start, end, T, dtype=torch.float64)
    return with_ends(betas, rescaled=rescale, zero_terminal_snr=zero_terminal_snr)
