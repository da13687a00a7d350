"""Heun's method on the probability flow: second order, two network evaluations a step."""

import math

from torch import Tensor

from ddpm.diffusion import Denoise, GaussianDiffusion
from ddpm.samplers.base import RandnLike, Sampler

PURE_NOISE = 200.0  # sigma; linear begins at 157, cosine at 20,000


class Heun(Sampler):
    """Algorithm 1 of Karras et al. 2022 (arXiv:2206.00364), without churn, on `steps` of T steps.

    In y = x_t / sqrt(alphas_cumprod) and sigma = sqrt(1 / alphas_cumprod - 1) the flow is
    dy / dsigma = eps: an Euler step of it is DDIM with eta = 0, and Heun's takes the mean of eps at
    both ends. The last step, to x_0, is Euler's, and so is one from a sigma above 200: from all but
    pure noise a step is so long in sigma that the mean of its ends says nothing of what lies
    between. So at most 2 steps - 1 network evaluations.

    Args:
        steps: how many steps; None: all T.
        spacing: which of the T steps.
    """

    def __init__(self, *, steps: int | None, spacing: str = "log_snr") -> None:
        super().__init__(steps=steps, spacing=spacing)

    def p_sample(
        self,
        denoise: Denoise,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: int,
        s: int,
        randn_like: RandnLike,
    ) -> Tensor:
        """One step, from x_t to x_s with s < t; s = -1 stands for x_0."""
        x_0, eps, _ = denoise(x_t, t)
        if s < 0:
            return x_0
        a_t, a_s = diffusion.alphas_cumprod_at(t), diffusion.alphas_cumprod_at(s)
        x_s = math.sqrt(a_s) * x_0 + math.sqrt(1 - a_s) * eps
        sigma_t = math.sqrt(1 / a_t - 1) if a_t > 0 else math.inf
        if sigma_t > PURE_NOISE:
            return x_s
        sigma_s = math.sqrt(1 / a_s - 1)
        eps_s = denoise(x_s, s).eps
        return x_s + math.sqrt(a_s) * (sigma_s - sigma_t) * (eps_s - eps) / 2
