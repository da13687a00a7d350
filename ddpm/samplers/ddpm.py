"""Ancestral sampling, Algorithm 2 of Ho et al. 2020."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion, Model
from ddpm.errors import InputError


class DDPM:
    """x_{t-1} = mean of q(x_{t-1} | x_t, x_0_hat) + sigma_t z (Algorithm 2, arXiv:2006.11239).

    Args:
        variance: sigma_t^2 is beta_t ("fixed_large") or the posterior variance ("fixed_small"):
            section 3.2, the two extremes that are right for x_0 ~ N(0, I) and for one fixed x_0.
    """

    def __init__(self, *, variance: str) -> None:
        if variance not in ("fixed_large", "fixed_small"):
            raise InputError(
                f"sampler.variance={variance}: must be 'fixed_large' or 'fixed_small'."
            )
        self.variance = variance

    def __call__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        x_T: Tensor,
        randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    ) -> Iterator[Tensor]:
        """Yield x_{T-1}, ..., x_1 and last of all x_0, each like x_T (B, C, H, W)."""
        x_t = x_T
        for t in reversed(range(diffusion.T)):
            x_t = self.p_sample(model, diffusion, x_t, t, randn_like)
            yield x_t

    def p_sample(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: int,
        randn_like: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """One step, from x_t to x_{t-1}; the last one, from t = 0 to x_0, adds no noise."""
        ts = x_t.new_full((len(x_t),), t, dtype=torch.int64)  # (B,)
        x_0, _ = diffusion.denoise(model, x_t, ts)
        mean, variance = diffusion.q_posterior(x_0, x_t, ts)
        if t == 0:
            return mean
        if self.variance == "fixed_large":
            variance = diffusion.betas[t]
        return mean + variance.sqrt() * randn_like(x_t)
