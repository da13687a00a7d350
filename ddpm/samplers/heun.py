"""Heun's method on the probability flow: second order, two network evaluations a step."""

from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.samplers.base import Randn, Sampler

PURE_NOISE = 200.0  # sigma / alpha; linear begins at 157, cosine at 20,000


class Heun(Sampler):
    """Algorithm 1 of Karras et al. 2022 (arXiv:2206.00364), without churn, on `steps` of T steps.

    In y = x_t / alpha and noise level sigma / alpha the flow is dy / d(sigma / alpha) = eps. An
    Euler step is DDIM with eta = 0; Heun's method averages eps over both ends of the step. Euler
    steps are taken to x_0 and from a noise level above 200: from nearly pure noise the step is so
    long that the average of its ends says nothing about the path between. So there are at most
    2 steps - 1 network evaluations.

    Args:
        steps: number of steps; None: all T.
        spacing: distribution of the steps over 0..T-1.
    """

    def __init__(self, *, steps: int | None, spacing: str = "log_snr") -> None:
        super().__init__(steps=steps, spacing=spacing)

    def p_sample(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, randn: Randn) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.alpha_sigma(t), denoiser.alpha_sigma(s)
        x_0, eps, _ = denoiser(x_t, t)
        x_s = alpha_s * x_0 + sigma_s * eps
        if sigma_s == 0 or sigma_t > PURE_NOISE * alpha_t:
            return x_s
        eps_s = denoiser(x_s, s).eps
        return x_s + (sigma_s - alpha_s * sigma_t / alpha_t) * (eps_s - eps) / 2
