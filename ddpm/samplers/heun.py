"""Heun's method on the probability flow: second order, two network evaluations a step."""

import math
from dataclasses import dataclass

from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.errors import InputError
from ddpm.limits.parts import check_limits
from ddpm.samplers.base import PURE_NOISE, Randn, Sampler

MOST_CHURN = math.sqrt(2) - 1  # relative growth of the noise level in a step


@dataclass(kw_only=True, eq=False)
class Heun(Sampler):
    """Algorithm 2 of Karras et al. 2022 (arXiv:2206.00364), on `steps` of T steps; without churn,
    Algorithm 1.

    In y = x_t / alpha and noise level sigma / alpha the flow is dy / d(sigma / alpha) = eps. An
    Euler step is DDIM with eta = 0; Heun's method averages eps over both ends of the step. Euler
    steps are taken to x_0 and from a noise level above 200: from nearly pure noise the step is so
    long that the average of its ends says nothing about the path between. So there are at most
    2 steps - 1 network evaluations.

    With churn, each step first adds noise. The network knows T noise levels, so that the level with
    the added noise is the nearest one of these; from T - 1 there is none to go to.

    Args:
        steps: number of steps; None: all T.
        spacing, rho: distribution of the steps over 0..T-1.
        churn: S_churn: the noise level grows by the factor 1 + churn / steps, at most sqrt(2).
        churn_min, churn_max: S_tmin and S_tmax: only at noise levels between them; None: no limit.
        churn_noise: S_noise, standard deviation of the added noise relative to the right one.
    """

    steps: int | None = 18
    spacing: str = "log_snr"
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float | None = None
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits("sampler", churn=self.churn, churn_min=self.churn_min)
        check_limits("sampler", churn_max=self.churn_max, churn_noise=self.churn_noise)
        if self.churn_max is not None and not self.churn_min < self.churn_max:
            raise InputError(
                f"sampler.churn_max={self.churn_max}: must be above "
                f"sampler.churn_min={self.churn_min}."
            )

    def p_sample(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, randn: Randn) -> Tensor:
        if self.churn > 0:
            x_t, t = self.churned(denoiser, x_t, t, randn)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.alpha_sigma(t), denoiser.alpha_sigma(s)
        x_0, eps, _ = denoiser(x_t, t)
        x_s = alpha_s * x_0 + sigma_s * eps
        if sigma_s == 0 or sigma_t > PURE_NOISE * alpha_t:
            return x_s
        eps_s = denoiser(x_s, s).eps
        return x_s + (sigma_s - alpha_s * sigma_t / alpha_t) * (eps_s - eps) / 2

    def churned(self, denoiser: Denoiser, x_t: Tensor, t: int, randn: Randn) -> tuple[Tensor, int]:
        """x_t with more noise, and the step that it is then at."""
        alpha, sigma = denoiser.alpha_sigma(t)
        most = math.inf if self.churn_max is None else self.churn_max
        if alpha == 0 or not self.churn_min * alpha <= sigma <= most * alpha:
            return x_t, t
        T = denoiser.diffusion.T
        growth = min(self.churn / (self.steps or T), MOST_CHURN)
        to = nearest_step(denoiser, t, (1 + growth) * sigma / alpha)
        if to == t:
            return x_t, t
        alpha_to, sigma_to = denoiser.alpha_sigma(to)
        kept = alpha_to / alpha
        added = math.sqrt(sigma_to**2 - (kept * sigma) ** 2)
        return kept * x_t + self.churn_noise * added * randn(x_t), to


def nearest_step(denoiser: Denoiser, t: int, level: float) -> int:
    """The step from t on whose noise level sigma / alpha is nearest to `level`, in ratio; never one
    of pure noise."""

    def distance(step: int) -> float:
        alpha, sigma = denoiser.alpha_sigma(step)
        return abs(math.log(sigma / (alpha * level))) if alpha > 0 else math.inf

    while t + 1 < denoiser.diffusion.T and distance(t + 1) < distance(t):
        t += 1
    return t
