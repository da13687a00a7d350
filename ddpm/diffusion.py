"""The diffusion process of Ho et al. 2020: how images become noise, and what that says of x_0.

The process is given its network: it owns no weights and knows no architecture, so any model works
with any schedule and any sampler. Time t runs over 0..T-1 and t = 0 is one step of noise (the
paper's t = 1). Coefficients are computed in float64 and kept in float32, and all arithmetic here is
float32 whatever the precision of the network: in bfloat16, sqrt(1 - alphas_cumprod) would be 0 for
the first ten steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ddpm.errors import InputError

Model = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, C, H, W), t (B,)) -> eps_hat (B, C, H, W)


def extract(a: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """The entries of `a` (T,) at `t` (B,), shaped (B, 1, ...) to broadcast against `x`."""
    return a[t].reshape(-1, *[1] * (x.dim() - 1))


class GaussianDiffusion(nn.Module):
    """q(x_t | x_0), q(x_{t-1} | x_t, x_0) and the training loss (arXiv:2006.11239).

    Args:
        betas: (T,) variances of the forward steps, float64, each in (0, 1).
    """

    def __init__(self, *, betas: Tensor) -> None:
        super().__init__()
        if not isinstance(betas, Tensor):
            raise InputError(f"diffusion.betas={betas}: they come from schedule; choose that.")
        betas = betas.to(torch.float64)
        if betas.dim() != 1 or not ((betas > 0) & (betas < 1)).all():
            raise InputError(
                f"schedule: betas must be (T,), each above 0 and below 1; these are "
                f"{tuple(betas.shape)}, from {betas.min():g} to {betas.max():g}."
            )
        alphas = 1 - betas
        alphas_cumprod = alphas.cumprod(0)
        alphas_cumprod_prev = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
        posterior_variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)

        self.T = len(betas)
        self._alphas_cumprod = [*alphas_cumprod.tolist(), 1.0]
        for name, values in {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "alphas_cumprod_prev": alphas_cumprod_prev,
            # Eq. 4: x_t = sqrt(alphas_cumprod) x_0 + sqrt(1 - alphas_cumprod) eps
            "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
            # Eq. 15, solved for x_0
            "sqrt_recip_alphas_cumprod": (1 / alphas_cumprod).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / alphas_cumprod - 1).sqrt(),
            # Eq. 7
            "posterior_variance": posterior_variance,
            "posterior_mean_coef_x_0": betas * alphas_cumprod_prev.sqrt() / (1 - alphas_cumprod),
            "posterior_mean_coef_x_t": (1 - alphas_cumprod_prev)
            * alphas.sqrt()
            / (1 - alphas_cumprod),
        }.items():
            self.register_buffer(name, values.to(torch.float32), persistent=False)

    def alphas_cumprod_at(self, t: int) -> float:
        """alphas_cumprod at step t in float64, for coefficients that float32 would cancel to
        nothing; t = -1 stands for x_0 itself, where it is 1."""
        return self._alphas_cumprod[t]

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Noise images up to step t: x_t ~ q(x_t | x_0), Eq. 4. (B, C, H, W), (B,) -> like x_0."""
        return (
            extract(self.sqrt_alphas_cumprod, t, x_0) * x_0
            + extract(self.sqrt_one_minus_alphas_cumprod, t, x_0) * eps
        )

    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t-1} | x_t, x_0), Eq. 6 and 7."""
        mean = (
            extract(self.posterior_mean_coef_x_0, t, x_t) * x_0
            + extract(self.posterior_mean_coef_x_t, t, x_t) * x_t
        )
        return mean, extract(self.posterior_variance, t, x_t)

    def predict_x_0(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The x_0 that `eps` would have turned into x_t, Eq. 15."""
        return (
            extract(self.sqrt_recip_alphas_cumprod, t, x_t) * x_t
            - extract(self.sqrt_recipm1_alphas_cumprod, t, x_t) * eps
        )

    def predict_eps(self, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
        """The noise that would have turned `x_0` into x_t: `predict_x_0` solved for eps."""
        return (extract(self.sqrt_recip_alphas_cumprod, t, x_t) * x_t - x_0) / extract(
            self.sqrt_recipm1_alphas_cumprod, t, x_t
        )

    def denoise(self, model: Model, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network takes x_0 and eps to be, given x_t: both like x_t, float32.

        x_0 is clipped to the range of images, as in Ho et al.'s code, and eps is the one that
        belongs to the clipped x_0: the two always satisfy Eq. 4.
        """
        eps = model(x_t, t).float()
        x_0 = self.predict_x_0(x_t, t, eps).clamp(-1, 1)
        return x_0, self.predict_eps(x_t, t, x_0)

    def loss(
        self, model: Model, x_0: Tensor, t: Tensor | None = None, eps: Tensor | None = None
    ) -> Tensor:
        """Algorithm 1, lines 2 to 5: the mean squared error of the predicted noise, a scalar.

        Args:
            model: predicts the noise in x_t.
            x_0: (B, C, H, W) images in [-1, 1], float32.
            t: (B,) steps, int64; drawn uniformly from all of 0..T-1 if not given.
            eps: standard normal noise like x_0; drawn if not given.
        """
        if t is None:
            t = torch.randint(self.T, (len(x_0),), device=x_0.device)
        if eps is None:
            eps = torch.randn_like(x_0)
        x_t = self.q_sample(x_0, t, eps)
        return mse_loss(model(x_t, t).float(), eps)
