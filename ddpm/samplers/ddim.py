"""Denoising Diffusion Implicit Models: the same network in fewer steps."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion, Model
from ddpm.errors import InputError
from ddpm.samplers.base import timesteps


class DDIM:
    """Eq. 12 of Song et al. 2021 (arXiv:2010.02502) on `steps` of the T steps.

    Args:
        steps: how many network evaluations, evenly spaced over 0..T-1.
        eta: 0 is deterministic, 1 has the variance of ancestral sampling (Eq. 16).
    """

    def __init__(self, *, steps: int, eta: float) -> None:
        if steps is None or steps < 1:
            raise InputError(f"sampler.steps={steps}: must be at least 1.")
        if not 0 <= eta <= 1:
            raise InputError(f"sampler.eta={eta}: must be between 0 and 1.")
        self.steps = steps
        self.eta = eta

    def __call__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        x_T: Tensor,
        randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    ) -> Iterator[Tensor]:
        """Yield `steps` images like x_T (B, C, H, W), each less noisy, last of all x_0."""
        x_t = x_T
        for t, s in timesteps(diffusion.T, self.steps):
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
        """One step, from x_t to x_s with s < t; s = -1 stands for x_0."""
        x_0, eps = diffusion.denoise(model, x_t, x_t.new_full((len(x_t),), t, dtype=torch.int64))
        if s < 0:
            return x_0
        a_t, a_s = diffusion.alphas_cumprod_at(t), diffusion.alphas_cumprod_at(s)
        variance = self.eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)  # Eq. 16
        x_s = math.sqrt(a_s) * x_0 + math.sqrt(1 - a_s - variance) * eps
        return x_s + math.sqrt(variance) * randn_like(x_t) if self.eta > 0 else x_s
