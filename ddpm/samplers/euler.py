"""Euler's method on the straight path of flow matching."""

from dataclasses import dataclass

from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.samplers.base import Randn, Sampler


@dataclass(kw_only=True, eq=False)
class Euler(Sampler):
    """z_s = z_t + (u_s - u_t) (eps - x_0) with z = x / (alpha + sigma), u = sigma / (alpha +
    sigma), for any schedule: first order (Liu et al. 2023, arXiv:2209.03003).

    eps - x_0 is what objective=velocity predicts. Euler's method in x / alpha and sigma / alpha
    (Karras et al. 2022) takes the same steps, and so does DDIM with eta = 0.

    Args:
        steps: number of network evaluations; None: all T.
        spacing, rho: distribution of the steps over 0..T-1; "trailing" on schedule=rectified is
            the even spacing of u from 1 to 0.
    """

    steps: int | None = 20
    spacing: str = "trailing"

    def p_sample(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, randn: Randn) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.alpha_sigma(t), denoiser.alpha_sigma(s)
        x_0, eps, _ = denoiser(x_t, t)
        if sigma_s == 0:
            return x_0
        from_scale, to_scale = alpha_t + sigma_t, alpha_s + sigma_s
        move = sigma_s / to_scale - sigma_t / from_scale
        return to_scale * (x_t / from_scale + move * (eps - x_0))
