"""DPM-Solver++: the fewest network evaluations for a good image."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm.diffusion import Denoise, GaussianDiffusion
from ddpm.errors import InputError
from ddpm.samplers.base import RandnLike, Sampler


class DPMSolver(Sampler):
    """DPM-Solver++(2M), Algorithm 2 of Lu et al. 2022 (arXiv:2211.01095), on `steps` of T steps.

    In lambda = log(alpha / sigma), half the log-SNR, the flow is solved exactly but for x_0_hat,
    which is taken as constant (order 1, that is DDIM with eta = 0) or as the line through its last
    two values (order 2). The first step has no value before it, and is of order 1; the last one
    goes to x_0 itself. One evaluation a step.

    Args:
        steps: how many network evaluations; None: all T.
        order: 1 or 2.
        stochastic: solve the reverse SDE instead of the flow (SDE-DPM-Solver++, the same paper):
            the noise that it adds takes out what a network of short training does wrong. Order 1
            is then DDIM with eta = 1.
        spacing: which of the T steps.
    """

    def __init__(
        self,
        *,
        steps: int | None,
        order: int,
        stochastic: bool = False,
        spacing: str = "log_snr",
    ) -> None:
        super().__init__(steps=steps, spacing=spacing)
        if order not in (1, 2):
            raise InputError(f"sampler.order={order}: must be 1 or 2.")
        self.order = order
        self.stochastic = stochastic

    def __call__(
        self,
        denoise: Denoise,
        diffusion: GaussianDiffusion,
        x_T: Tensor,
        randn_like: RandnLike = torch.randn_like,
        start: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield images like x_T (B, C, H, W), each a step less noisy, last of all x_0."""
        x_t, before = x_T, None
        for t, s in self.timesteps(diffusion, start):
            x_0 = denoise(x_t, t).x_0
            x_t = self.step(diffusion, x_t, x_0, t, s, before, randn_like)
            yield x_t
            before = (t, x_0) if self.order == 2 else None

    def p_sample(
        self,
        denoise: Denoise,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: int,
        s: int,
        randn_like: RandnLike,
    ) -> Tensor:
        """One step on its own, from x_t to x_s: it knows no step before it, and is of order 1."""
        return self.step(diffusion, x_t, denoise(x_t, t).x_0, t, s, None, randn_like)

    def step(
        self,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        x_0: Tensor,
        t: int,
        s: int,
        before: tuple[int, Tensor] | None,
        randn_like: RandnLike,
    ) -> Tensor:
        """x_s from x_t and the x_0_hat there; `before`: the t and the x_0_hat of the last step."""
        if s < 0:
            return x_0
        a_t, a_s = diffusion.alphas_cumprod_at(t), diffusion.alphas_cumprod_at(s)
        if before is not None:
            h = half_log_snr(a_s) - half_log_snr(a_t)
            h_before = half_log_snr(a_t) - half_log_snr(diffusion.alphas_cumprod_at(before[0]))
            # From pure noise h_before is infinite, and the correction 0.
            x_0 = x_0 + h / (2 * h_before) * (x_0 - before[1])
        # decay is sigma_s / sigma_t, and e^-h = (sigma_s alpha_t) / (alpha_s sigma_t) is written
        # out, so that alpha_t may be 0.
        decay = math.sqrt((1 - a_s) / (1 - a_t))
        exp_h = decay * math.sqrt(a_t / a_s)
        if self.stochastic:
            fresh = 1 - exp_h**2
            noise = math.sqrt((1 - a_s) * fresh) * randn_like(x_t)
            return decay * exp_h * x_t + math.sqrt(a_s) * fresh * x_0 + noise
        return decay * x_t + math.sqrt(a_s) * (1 - exp_h) * x_0


def half_log_snr(a: float) -> float:
    """lambda at alphas_cumprod = a; minus infinity at 0."""
    return 0.5 * math.log(a / (1 - a)) if a > 0 else -math.inf
