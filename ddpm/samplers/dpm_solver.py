"""DPM-Solver++: the fewest network evaluations for a good image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import expm1, sqrt

import torch
from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.limits.parts import check_limits
from ddpm.samplers.base import Randn, Sampler, half_log_snr


@dataclass(kw_only=True, eq=False)
class DPMSolver(Sampler):
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095), and order 3, on `steps` of T steps.

    In lambda = log(alpha / sigma) the flow is solved exactly except for x_0_hat, which is constant
    over a step (order 1, that is DDIM with eta = 0), or taken from the line (order 2, Algorithm 2,
    which evaluates it in the middle of the step) or the parabola (order 3) through its last values.
    The first step, which has no earlier value, and the last one, to x_0, are of order 1. One
    network evaluation a step.

    The paper goes up to order 2. Order 3 is in the authors' code and in diffusers, which this class
    does not follow. In the Taylor expansion of the flow (the paper's section 4) the n-th derivative
    of x_0_hat is multiplied by the integral of (r^n / n!) e^(r - h) over the step, r = 0..h. For
    n = 2 that code puts the second divided difference in the place of the derivative, which is
    twice as large: its last term has half of the right weight, and its order is 2. (The authors'
    single-step solver has the factor of 2.) Here the parabola is integrated exactly: order 3.

    Args:
        steps: number of network evaluations; None: all T.
        order: 1, 2 or 3.
        stochastic: solve the reverse SDE instead of the flow (SDE-DPM-Solver++, same paper): fresh
            noise corrects accumulated errors of a briefly trained network. Order 1 is then DDIM
            with eta = 1.
        spacing, rho: distribution of the steps over 0..T-1.
    """

    steps: int | None = 15
    order: int = 2
    stochastic: bool = False
    spacing: str = "log_snr"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits("sampler", order=self.order)

    def __call__(
        self,
        denoiser: Denoiser,
        x_T: Tensor,
        randn: Randn = torch.randn_like,
        start: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield the images after each step, x_0 last: (B, C, H, W), like x_T."""
        x_t = x_T
        previous: list[tuple[int, Tensor]] = []  # the newest first
        for t, s in self.timesteps(denoiser.diffusion, start):
            x_0 = denoiser(x_t, t).x_0
            x_t = self.step(denoiser, x_t, x_0, t, s, randn, previous)
            yield x_t
            previous = [(t, x_0), *previous][: self.order - 1]

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
        previous: Sequence[tuple[int, Tensor]] = (),
    ) -> Tensor:
        """x_s from x_t and its x_0_hat; `previous`: t and x_0_hat of the last one or two steps."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.alpha_sigma(t), denoiser.alpha_sigma(s)
        if previous and sigma_s > 0:
            lambda_t = half_log_snr(alpha_t, sigma_t)
            h = half_log_snr(alpha_s, sigma_s) - lambda_t
            back = [lambda_t - half_log_snr(*denoiser.alpha_sigma(p)) for p, _ in previous]
            if len(previous) == 1:
                # From pure noise `back` is infinite and the correction 0.
                x_0 = x_0 + h / (2 * back[0]) * (x_0 - previous[0][1])
            else:
                x_0 = x_0 + self.parabola(h, back, x_0, *(x for _, x in previous))
        decay = sigma_s / sigma_t
        exp_h = decay * alpha_t / alpha_s  # e^-h, defined for alpha_t = 0, too
        if not self.stochastic:
            return decay * x_t + alpha_s * (1 - exp_h) * x_0
        fresh = 1 - exp_h**2
        x_s = decay * exp_h * x_t + alpha_s * fresh * x_0
        return x_s + sigma_s * sqrt(fresh) * randn(x_t) if sigma_s > 0 else x_s

    def parabola(
        self, h: float, back: list[float], x_0: Tensor, x_1: Tensor, x_2: Tensor
    ) -> Tensor:
        """The correction of x_0 that makes the step exact for the parabola through x_0_hat at
        lambda_t and, `back` in lambda, x_1 and x_2."""
        k = 2 if self.stochastic else 1
        # Means of r and r^2 over the step, r = 0..h, with the weight e^(k r).
        total = -expm1(-k * h)
        mean = (h - total / k) / total
        square = (h**2 - 2 / k * mean * total) / total
        newest = (x_0 - x_1) / back[0]
        older = (x_1 - x_2) / (back[1] - back[0])  # 0 if x_2 belongs to pure noise
        curvature = (newest - older) / back[1]
        return mean * (newest + back[0] * curvature) + square * curvature
