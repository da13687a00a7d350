"""Ancestral sampling, Algorithm 2 of Ho et al. 2020, on all T steps or on some of them."""

import logging
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion, Model
from ddpm.errors import InputError
from ddpm.samplers.base import timesteps

logger = logging.getLogger(__name__)
VARIANCES = ("auto", "fixed_large", "fixed_small")


class DDPM:
    """x_s = mean of q(x_s | x_t, x_0_hat) + sigma z (Algorithm 2, arXiv:2006.11239).

    Args:
        steps: how many network evaluations, evenly spaced over 0..T-1; None: all T, s = t - 1.
        variance: sigma^2 is the variance of the forward step from s to t ("fixed_large") or of the
            posterior ("fixed_small"): section 3.2, right for x_0 ~ N(0, I) and for one fixed x_0.
            "auto": large on all steps, small on fewer, where the large one is many times too large
            (the sigma-hat rows of Table 1 in Song et al. 2021, arXiv:2010.02502).
    """

    def __init__(self, *, steps: int | None, variance: str) -> None:
        if steps is not None and steps < 1:
            raise InputError(f"sampler.steps={steps}: must be at least 1, or null for all.")
        if variance not in VARIANCES:
            raise InputError(f"sampler.variance={variance}: must be one of {', '.join(VARIANCES)}.")
        if variance == "fixed_large" and steps is not None:
            logger.warning("sampler.variance=fixed_large adds too much noise on fewer than T steps")
        self.steps = steps
        self.variance = variance

    def large(self, T: int) -> bool:
        """Whether sigma^2 is the variance of the forward step."""
        every = self.steps is None or self.steps == T
        return self.variance == "fixed_large" or (self.variance == "auto" and every)

    def __call__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        x_T: Tensor,
        randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    ) -> Iterator[Tensor]:
        """Yield images like x_T (B, C, H, W), each a step less noisy, last of all x_0."""
        x_t = x_T
        steps = self.steps or diffusion.T
        for t, s in timesteps(diffusion.T, steps):
            x_t = self.p_sample(model, diffusion, x_t, t, s, randn_like)
            yield x_t

    def p_sample(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: int,
        s: int,
        randn_like: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """One step, from x_t to x_s with s < t; s = -1 stands for x_0, and adds no noise.

        Eq. 7 with alphas_cumprod at s for that at t - 1, and for beta_t what it then must be.
        """
        x_0, _ = diffusion.denoise(model, x_t, x_t.new_full((len(x_t),), t, dtype=torch.int64))
        if s < 0:
            return x_0
        a_t, a_s = diffusion.alphas_cumprod_at(t), diffusion.alphas_cumprod_at(s)
        beta = 1 - a_t / a_s
        mean = (
            math.sqrt(a_s) * beta / (1 - a_t) * x_0
            + math.sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t) * x_t
        )
        variance = beta if self.large(diffusion.T) else beta * (1 - a_s) / (1 - a_t)
        return mean + math.sqrt(variance) * randn_like(x_t)
