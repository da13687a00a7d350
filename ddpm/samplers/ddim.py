"""Denoising Diffusion Implicit Models: the same network in fewer steps."""

import math

from torch import Tensor

from ddpm.diffusion import Denoise, GaussianDiffusion
from ddpm.errors import InputError
from ddpm.samplers.base import RandnLike, Sampler


class DDIM(Sampler):
    """Eq. 12 of Song et al. 2021 (arXiv:2010.02502) on `steps` of the T steps.

    Args:
        steps: how many network evaluations; None: all T.
        eta: 0 is deterministic, 1 has the variance of ancestral sampling (Eq. 16).
        spacing: which of the T steps.
    """

    def __init__(self, *, steps: int | None, eta: float, spacing: str = "uniform") -> None:
        super().__init__(steps=steps, spacing=spacing)
        if not 0 <= eta <= 1:
            raise InputError(f"sampler.eta={eta}: must be between 0 and 1.")
        self.eta = eta

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
        variance = self.eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)  # Eq. 16
        x_s = math.sqrt(a_s) * x_0 + math.sqrt(1 - a_s - variance) * eps
        return x_s + math.sqrt(variance) * randn_like(x_t) if self.eta > 0 else x_s
