"""DPM-Solver++: the fewest network evaluations for a good image."""

from collections.abc import Iterator
from math import sqrt

import torch
from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.errors import InputError
from ddpm.samplers.base import Randn, Sampler, half_log_snr


class DPMSolver(Sampler):
    """DPM-Solver++(2M), Algorithm 2 of Lu et al. 2022 (arXiv:2211.01095), on `steps` of T steps.

    In lambda = log(alpha / sigma) the flow is solved exactly except for x_0_hat, which is constant
    over a step (order 1, that is DDIM with eta = 0) or linear through its last two values (order
    2). The first step, which has no earlier value, and the last one, to x_0, are of order 1. One
    network evaluation a step.

    Args:
        steps: number of network evaluations; None: all T.
        order: 1 or 2.
        stochastic: solve the reverse SDE instead of the flow (SDE-DPM-Solver++, same paper): fresh
            noise corrects accumulated errors of a briefly trained network. Order 1 is then DDIM
            with eta = 1.
        spacing: distribution of the steps over 0..T-1.
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
        denoiser: Denoiser,
        x_T: Tensor,
        randn: Randn = torch.randn_like,
        start: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield the images after each step, x_0 last: (B, C, H, W), like x_T."""
        x_t, previous = x_T, None
        for t, s in self.timesteps(denoiser.diffusion, start):
            x_0 = denoiser(x_t, t).x_0
            x_t = self.step(denoiser, x_t, x_0, t, s, randn, previous)
            yield x_t
            previous = (t, x_0) if self.order == 2 else None

    def p_sample(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, randn: Randn) -> Tensor:
        """A single step, without an earlier one: of order 1."""
        return self.step(denoiser, x_t, denoiser(x_t, t).x_0, t, s, randn)

    def step(
        self,
        denoiser: Denoiser,
        x_t: Tensor,
        x_0: Tensor,
        t: int,
        s: int,
        randn: Randn,
        previous: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """x_s from x_t and its x_0_hat; `previous`: t and x_0_hat of the previous step."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.alpha_sigma(t), denoiser.alpha_sigma(s)
        if previous is not None and sigma_s > 0:
            lambda_t = half_log_snr(alpha_t, sigma_t)
            h = half_log_snr(alpha_s, sigma_s) - lambda_t
            h_previous = lambda_t - half_log_snr(*denoiser.alpha_sigma(previous[0]))
            # From pure noise h_previous is infinite and the correction 0.
            x_0 = x_0 + h / (2 * h_previous) * (x_0 - previous[1])
        decay = sigma_s / sigma_t
        exp_h = decay * alpha_t / alpha_s  # e^-h, defined for alpha_t = 0, too
        if not self.stochastic:
            return decay * x_t + alpha_s * (1 - exp_h) * x_0
        fresh = 1 - exp_h**2
        x_s = decay * exp_h * x_t + alpha_s * fresh * x_0
        return x_s + sigma_s * sqrt(fresh) * randn(x_t) if sigma_s > 0 else x_s
