"""Ancestral sampling, Algorithm 2 of Ho et al. 2020, on all T steps or on some of them."""

import logging
import math

import torch
from torch import Tensor

from ddpm.diffusion import Denoise, GaussianDiffusion
from ddpm.errors import InputError, nearest
from ddpm.samplers.base import RandnLike, Sampler

logger = logging.getLogger(__name__)
VARIANCES = ("auto", "fixed_large", "fixed_small", "learned")


class DDPM(Sampler):
    """x_s = mean of q(x_s | x_t, x_0_hat) + sigma z (Algorithm 2, arXiv:2006.11239).

    Args:
        steps: how many network evaluations; None: all T, s = t - 1.
        variance: sigma^2 is the variance of the forward step from s to t ("fixed_large") or of the
            posterior ("fixed_small"): section 3.2, right for x_0 ~ N(0, I) and for one fixed x_0;
            or what the network says ("learned", Nichol & Dhariwal 2021, arXiv:2102.09672).
            "auto": learned where it is; else large on all steps, small on fewer, where the large
            one is many times too large (the sigma-hat rows of Table 1 in Song et al. 2021,
            arXiv:2010.02502).
        spacing: which of the T steps.
    """

    def __init__(self, *, steps: int | None, variance: str, spacing: str = "uniform") -> None:
        super().__init__(steps=steps, spacing=spacing)
        if variance not in VARIANCES:
            hint = nearest(str(variance), VARIANCES)
            raise InputError(
                f"sampler.variance={variance}: must be one of {', '.join(VARIANCES)}.{hint}"
            )
        if variance == "fixed_large" and steps is not None:
            logger.warning("sampler.variance=fixed_large adds too much noise on fewer than T steps")
        self.variance = variance

    def p_sample(
        self,
        denoise: Denoise,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: int,
        s: int,
        randn_like: RandnLike,
    ) -> Tensor:
        """One step, from x_t to x_s with s < t; s = -1 stands for x_0, and adds no noise.

        Eq. 7 with alphas_cumprod at s for that at t - 1, and for beta_t what it then must be.
        """
        x_0, _, fraction = denoise(x_t, t)
        if s < 0:
            return x_0
        a_t, a_s = diffusion.alphas_cumprod_at(t), diffusion.alphas_cumprod_at(s)
        beta = 1 - a_t / a_s
        mean = (
            math.sqrt(a_s) * beta / (1 - a_t) * x_0
            + math.sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t) * x_t
        )
        small = beta * (1 - a_s) / (1 - a_t)
        return mean + self.sigma(beta, small, fraction, diffusion.T) * randn_like(x_t)

    def sigma(self, large: float, small: float, fraction: Tensor | None, T: int) -> float | Tensor:
        """The standard deviation of the noise, of the two extremes or between them.

        Raises:
            InputError: it is to be the learned one, and the network has none.
        """
        kind = self.variance
        if kind == "auto":
            every = self.steps is None or self.steps == T
            kind = "learned" if fraction is not None else "large" if every else "small"
        if kind == "learned":
            if fraction is None:
                raise InputError(
                    "sampler.variance=learned: the network was not trained with "
                    "objective.learned_variance=true; choose auto."
                )
            log_variance = fraction * math.log(large) + (1 - fraction) * math.log(small)
            return torch.exp(0.5 * log_variance)
        return math.sqrt(large if kind.endswith("large") else small)
