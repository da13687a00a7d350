"""The forward process of Ho et al. 2020 (arXiv:2006.11239): how images become noise.

x_t = alpha_t x_0 + sigma_t eps with alpha_t^2 = alphas_cumprod_t and alpha_t^2 + sigma_t^2 = 1
(Eq. 4; the paper's alpha_t is 1 - beta_t). Time t runs over 0..T-1, and t = 0 is one step of noise
(the paper's t = 1). Coefficients are computed in float64. Batches use them in float32, whatever the
precision of the network: in bfloat16, sigma would be 0 for the first ten steps.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.errors import InputError
from ddpm.images import Codec, codec_of
from ddpm.objectives.base import Objective
from ddpm.objectives.eps import Eps
from ddpm.schedules.learned import LearnedSchedule
from ddpm.timesteps.base import Timesteps
from ddpm.timesteps.uniform import Uniform as UniformTimesteps
from ddpm.weightings.base import Weighting
from ddpm.weightings.uniform import Uniform


def extract(a: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """The entries of `a` (T,) at `t` (B,), shaped (B, 1, ...) to broadcast against `x`."""
    return a[t].reshape(-1, *[1] * (x.dim() - 1))


class GaussianDiffusion(nn.Module):
    """q(x_t | x_0) and q(x_{t-1} | x_t, x_0), and the choices of training that depend on t.

    It owns no network: any model works with any schedule, objective and sampler.

    Args:
        betas: (T,) variances of the forward steps, float64, each in (0, 1), the last one at most 1;
            or a learned schedule, whose parameters become parameters of this module.
        objective: what the network predicts; default: the noise.
        weighting: weight of each timestep in the loss; default: uniform.
        timesteps: distribution of t in training, see `ddpm/timesteps`; default: uniform.
        codec: images <-> x_0; default: that of the value range.
        value_range: the values that are -1 and 1 in x_0; None: 8-bit pixels, 0 and 255.
        clip: interval to which predictions of x_0 are clipped, as in Ho et al.'s code; None for
            data without bounds.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    snr: Tensor
    loss_weights: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_mean_coef_x_0: Tensor
    posterior_mean_coef_x_t: Tensor

    def __init__(
        self,
        betas: Tensor | LearnedSchedule,
        *,
        objective: Objective | None = None,
        weighting: Weighting | None = None,
        timesteps: Timesteps | None = None,
        codec: Codec | None = None,
        value_range: Sequence[float] | None = None,
        clip: tuple[float, float] | None = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        self.objective = objective or Eps()
        self.weighting = weighting or Uniform()
        self.timesteps = timesteps or UniformTimesteps()
        self.codec = codec or codec_of(value_range)
        self.clip = clip
        self.schedule = betas if isinstance(betas, nn.Module) else None
        if isinstance(betas, nn.Module):
            betas = betas.betas()
        if self.schedule is not None or self.objective.measures:
            self.register_load_state_dict_post_hook(_refresh_after_loading)
        if not isinstance(betas, Tensor):
            raise InputError(f"diffusion.betas={betas}: set by the schedule; choose a schedule.")
        self.T = len(betas) if betas.dim() else 0
        check_betas(betas, self.objective)
        self._fixed_betas = betas
        self._alphas_cumprod: list[float] | None = None
        coefficients = self._coefficients()
        for name, values in coefficients.items():
            self.register_buffer(name, values.to(torch.float32), persistent=False)
        self.timesteps.prepare(coefficients["snr"])

    def refresh(self) -> None:
        """Recompute the coefficients after the parameters of a learned schedule have changed, or
        after the objective has measured something.

        Loading a state dict does it; after an optimizer step, `training.step` does.
        """
        coefficients = self._coefficients()
        for name, values in coefficients.items():
            getattr(self, name).copy_(values)
        self.timesteps.prepare(coefficients["snr"])
        self._alphas_cumprod = None  # for sampling only; reading it would wait for a GPU

    def measure(self, images: Tensor) -> None:
        """Let the objective measure uint8 images (N, C, H, W), if it `measures`."""
        if self.objective.measures:
            self.objective.measure(self.codec.encode(images))
            self.refresh()

    def exact_betas(self) -> Tensor:
        """The betas in float64: (T,). The buffer `betas` holds them in float32."""
        return (self._fixed_betas if self.schedule is None else self.schedule.betas()).double()

    def _coefficients(self) -> dict[str, Tensor]:
        """All coefficients that follow from the betas: (T,), float64."""
        betas = self.exact_betas()
        alphas_cumprod = (1 - betas).cumprod(0)
        alphas_cumprod_prev = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
        noise, noise_prev = 1 - alphas_cumprod, 1 - alphas_cumprod_prev
        snr = alphas_cumprod / noise
        return {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "snr": snr,
            "loss_weights": self.weighting.weights(snr, self.objective),
            "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": noise.sqrt(),
            # Eq. 7
            "posterior_variance": betas * noise_prev / noise,
            "posterior_mean_coef_x_0": betas * alphas_cumprod_prev.sqrt() / noise,
            "posterior_mean_coef_x_t": noise_prev * (1 - betas).sqrt() / noise,
        }

    def alphas_cumprod_at(self, t: int) -> float:
        """alphas_cumprod at step t, float64; 1 at t = -1, which stands for x_0."""
        if self._alphas_cumprod is None:
            alphas_cumprod = (1 - self.exact_betas()).cumprod(0)
            self._alphas_cumprod = [*alphas_cumprod.tolist(), 1.0]  # index -1 finds the 1
        return self._alphas_cumprod[t]

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        """alpha and sigma at step t, float64; (1, 0) at t = -1, which stands for x_0."""
        alphas_cumprod = self.alphas_cumprod_at(t)
        return math.sqrt(alphas_cumprod), math.sqrt(1 - alphas_cumprod)

    def alpha_sigma_like(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t (B,), float32, shaped to broadcast against x (B, ...)."""
        return (
            extract(self.sqrt_alphas_cumprod, t, x),
            extract(self.sqrt_one_minus_alphas_cumprod, t, x),
        )

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0), Eq. 4, from noise eps: (B, C, H, W), (B,) -> like x_0."""
        alpha, sigma = self.alpha_sigma_like(x_0, t)
        return alpha * x_0 + sigma * eps

    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t-1} | x_t, x_0), Eq. 6 and 7. `DDPM.p_sample` has them for
        any step s < t in place of t - 1."""
        mean = (
            extract(self.posterior_mean_coef_x_0, t, x_t) * x_0
            + extract(self.posterior_mean_coef_x_t, t, x_t) * x_t
        )
        return mean, extract(self.posterior_variance, t, x_t)

    def predict_eps(self, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
        """Eq. 4 solved for eps."""
        alpha, sigma = self.alpha_sigma_like(x_t, t)
        return (x_t - alpha * x_0) / sigma

    def clip_x_0(self, x_0: Tensor) -> Tensor:
        """x_0 clipped to `clip`."""
        return x_0 if self.clip is None else x_0.clamp(*self.clip)


def _refresh_after_loading(diffusion: GaussianDiffusion, _: Any) -> None:
    diffusion.objective.after_loading()
    diffusion.refresh()
    diffusion.alphas_cumprod_at(0)


def check_betas(betas: Tensor, objective: Objective) -> None:
    """Check the betas, and that the objective can be sampled from if the last one is 1.

    Raises:
        InputError: a beta is out of range, alphas_cumprod vanishes before the last step, or the
            last beta is 1 and the objective predicts eps.
    """
    inner, last = betas[:-1], betas[-1:]
    is_vector = betas.dim() == 1 and len(betas) > 0
    inner_ok, last_ok = ((inner > 0) & (inner < 1)).all(), ((last > 0) & (last <= 1)).all()
    if not (is_vector and inner_ok and last_ok):
        span = f", from {betas.min():g} to {betas.max():g}" if betas.numel() else ""
        raise InputError(
            f"schedule: betas must have shape (T,) and lie above 0 and below 1, the last at most "
            f"1; these have shape {tuple(betas.shape)}{span}."
        )
    if ((1 - betas).cumprod(0)[:-1] < 1e-60).any():
        raise InputError(
            f"schedule: alphas_cumprod vanishes long before the last of T={len(betas)} steps; use "
            "smaller betas or fewer steps."
        )
    if last.item() == 1 and objective.needs_signal:
        raise InputError(
            "schedule.zero_terminal_snr=true, or schedule.end=1: x_T is pure noise, from which "
            "objective=eps cannot recover x_0; choose objective=v or x_0."
        )
