"""Ancestral sampling, Algorithm 2 of Ho et al. 2020, on all T steps or on some of them."""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.errors import InputError
from ddpm.limits.parts import check_limits
from ddpm.samplers.base import Randn, Sampler

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class DDPM(Sampler):
    """x_s = mean of q(x_s | x_t, x_0_hat) + std z (Algorithm 2, arXiv:2006.11239).

    Args:
        steps: number of network evaluations; None: all T, s = t - 1.
        variance: "fixed_large", the variance of the forward step from s to t, is right for
            x_0 ~ N(0, I); "fixed_small", the posterior's, for a single fixed x_0 (section 3.2);
            "learned" is the network's (Nichol & Dhariwal 2021, arXiv:2102.09672). "auto": learned
            if the network has one, else large on all T steps and small on fewer, where the large
            one is many times too large (the sigma-hat rows of Table 1 in Song et al. 2021,
            arXiv:2010.02502).
        spacing, rho: distribution of the steps over 0..T-1.
    """

    steps: int | None = None
    variance: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits("sampler", variance=self.variance)
        if self.variance == "fixed_large" and self.steps is not None:
            logger.warning(
                "sampler.variance=fixed_large adds too much noise if sampler.steps < schedule.T"
            )

    def p_sample(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, randn: Randn) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.alpha_sigma(t), denoiser.alpha_sigma(s)
        x_0, _, fraction = denoiser(x_t, t)
        kept = alpha_t / alpha_s  # x_t = kept x_s + sqrt(large) z: Eq. 2 from s to t
        large = sigma_t**2 - (kept * sigma_s) ** 2
        small = large * sigma_s**2 / sigma_t**2  # Eq. 7
        # Eq. 7, too
        mean = alpha_s * large / sigma_t**2 * x_0 + kept * sigma_s**2 / sigma_t**2 * x_t
        if sigma_s == 0:  # x_0 itself: line 3 of Algorithm 2, z = 0
            return mean
        return mean + self.std(large, small, fraction, denoiser.diffusion.T) * randn(x_t)

    def std(self, large: float, small: float, fraction: Tensor | None, T: int) -> float | Tensor:
        """Standard deviation of a step, from the two extremes of its variance.

        Raises:
            InputError: "learned", but the network has no learned variance.
        """
        variance = self.variance
        if variance == "auto":
            fixed = "fixed_large" if self.steps in (None, T) else "fixed_small"
            variance = fixed if fraction is None else "learned"
        if variance != "learned":
            return math.sqrt(large if variance == "fixed_large" else small)
        if fraction is None:
            raise InputError(
                "sampler.variance=learned: the network was not trained with "
                "objective.learned_variance=true; choose auto."
            )
        log_variance = fraction * math.log(large) + (1 - fraction) * math.log(small)
        return torch.exp(0.5 * log_variance)
