"""Euler steps to less noise than wanted, and fresh noise up to it."""

from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.limits.parts import check_limits
from ddpm.samplers.base import Randn, Sampler


@dataclass(kw_only=True, eq=False)
class EulerAncestral(Sampler):
    """An Euler step in x / alpha from noise level l_t = sigma_t / alpha_t to l_down, and noise of
    variance l_up^2 = l_s^2 - l_down^2, with l_up = eta l_s sqrt(1 - l_s^2 / l_t^2): the ancestral
    sampler of k-diffusion. The variance is that of DDIM, Eq. 16 of Song et al. 2021.

    Args:
        steps: number of network evaluations; None: all T.
        eta: 1 is ancestral sampling with the posterior's variance, 0 is Euler's method.
        spacing, rho: distribution of the steps over 0..T-1.
    """

    steps: int | None = 50
    eta: float = 1.0
    spacing: str = "karras"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits("sampler", eta=self.eta)

    def p_sample(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, randn: Randn) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.alpha_sigma(t), denoiser.alpha_sigma(s)
        x_0, eps, _ = denoiser(x_t, t)
        if sigma_s == 0:
            return x_0
        level = sigma_s / alpha_s
        up = self.eta * level * sqrt(1 - (level * alpha_t / sigma_t) ** 2)
        x_s = alpha_s * (x_0 + sqrt(level**2 - up**2) * eps)
        return x_s + alpha_s * up * randn(x_t) if up > 0 else x_s
