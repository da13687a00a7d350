"""Denoising Diffusion Implicit Models: the same network in fewer steps."""

from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.limits.parts import check_limits
from ddpm.samplers.base import Randn, Sampler


@dataclass(kw_only=True, eq=False)
class DDIM(Sampler):
    """Eq. 12 of Song et al. 2021 (arXiv:2010.02502) on `steps` of the T steps.

    Args:
        steps: number of network evaluations; None: all T.
        eta: 0 is deterministic, 1 has the variance of ancestral sampling (Eq. 16).
        spacing, rho: distribution of the steps over 0..T-1.
    """

    steps: int | None = 50
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits("sampler", eta=self.eta)

    def p_sample(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, randn: Randn) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.alpha_sigma(t), denoiser.alpha_sigma(s)
        x_0, eps, _ = denoiser(x_t, t)
        snr_ratio = (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2  # SNR_t / SNR_s
        # Eq. 16; kept^2 + fresh^2 = sigma_s^2, without cancellation
        fresh = self.eta * sigma_s * sqrt(1 - snr_ratio)
        kept = sigma_s * sqrt(1 - self.eta**2 + self.eta**2 * snr_ratio)
        x_s = alpha_s * x_0 + kept * eps
        return x_s + fresh * randn(x_t) if fresh > 0 else x_s
