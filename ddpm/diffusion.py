"""The diffusion process of Ho et al. 2020: how images become noise, and what that says of x_0.

The process is given its network: it owns no weights and knows no architecture, so any model works
with any schedule, objective and sampler. Time t runs over 0..T-1 and t = 0 is one step of noise
(the paper's t = 1). Coefficients are computed in float64 and kept in float32, and all arithmetic
here is float32 whatever the precision of the network: in bfloat16, sqrt(1 - alphas_cumprod) would
be 0 for the first ten steps.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ddpm import likelihood
from ddpm.errors import InputError
from ddpm.objectives.base import Objective
from ddpm.objectives.eps import Eps
from ddpm.weightings.base import Weighting
from ddpm.weightings.uniform import Uniform

# (x_t (B, C, H, W), t (B,), label (B,) or None) -> what the objective asks for, like x_t; twice the
# channels where the variance is learned. A label of NO_LABEL is the null class, as is None.
Model = Callable[..., Tensor]
NO_LABEL = -1


class Prediction(NamedTuple):
    """What is believed of the images behind x_t: float32, like x_t.

    x_0 and eps always satisfy Eq. 4. `fraction` in [0, 1] says where the logarithm of the variance
    of a reverse step lies, between the posterior's (0) and the forward step's (1); None: it is not
    learned.
    """

    x_0: Tensor
    eps: Tensor
    fraction: Tensor | None = None


Denoise = Callable[[Tensor, int], Prediction]  # (x_t (B, C, H, W), t) -> prediction


class LearnableSchedule(Protocol):
    """Betas that change while training (`schedules/learned.py`)."""

    def betas(self) -> Tensor: ...
    def log_snr(self) -> Tensor: ...


def extract(a: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """The entries of `a` (T,) at `t` (B,), shaped (B, 1, ...) to broadcast against `x`."""
    return a[t].reshape(-1, *[1] * (x.dim() - 1))


class GaussianDiffusion(nn.Module):
    """q(x_t | x_0), q(x_{t-1} | x_t, x_0) and the training loss (arXiv:2006.11239).

    Args:
        betas: (T,) variances of the forward steps, float64, each in (0, 1), the last one at most 1;
            or a schedule that learns, a module. Its parameters are then this module's.
        objective: what the network predicts; the noise, if not given.
        weighting: how much each timestep counts; all the same, if not given.
    """

    def __init__(
        self,
        *,
        betas: Tensor | nn.Module,
        objective: Objective | None = None,
        weighting: Weighting | None = None,
    ) -> None:
        super().__init__()
        self.objective = objective or Eps()
        self.weighting = weighting or Uniform()
        self.schedule: LearnableSchedule | None = None
        if isinstance(betas, nn.Module):
            self.schedule = betas
            betas = betas.betas()
        if not isinstance(betas, Tensor):
            raise InputError(f"diffusion.betas={betas}: they come from schedule; choose that.")
        self.T = len(betas) if betas.dim() else 0
        check_betas(betas, self.objective)
        for name, values in self._coefficients(betas.double()).items():
            self.register_buffer(name, values, persistent=False)
        self._alphas_cumprod = on_host(betas)

    def refresh(self, *, host: bool = True) -> None:
        """Take the coefficients from the schedule as it now is, where it learns.

        Args:
            host: also for `alphas_cumprod_at`, that is for sampling; waits for the device.
        """
        if self.schedule is not None:
            betas = self.schedule.betas()
            for name, values in self._coefficients(betas).items():
                getattr(self, name).copy_(values)
            if host:
                self._alphas_cumprod = on_host(betas)

    def _coefficients(self, betas: Tensor) -> dict[str, Tensor]:
        """All that follows from betas (T,), float64, rounded to float32."""
        alphas = 1 - betas
        alphas_cumprod = alphas.cumprod(0)
        alphas_cumprod_prev = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
        snr = alphas_cumprod / (1 - alphas_cumprod)
        exact = {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "alphas_cumprod_prev": alphas_cumprod_prev,
            "snr": snr,
            "loss_weights": self.weighting.weights(snr, self.objective),
            # Eq. 4: x_t = sqrt(alphas_cumprod) x_0 + sqrt(1 - alphas_cumprod) eps
            "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
            # Eq. 7
            "posterior_variance": betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod),
            "posterior_mean_coef_x_0": betas * alphas_cumprod_prev.sqrt() / (1 - alphas_cumprod),
            "posterior_mean_coef_x_t": (1 - alphas_cumprod_prev)
            * alphas.sqrt()
            / (1 - alphas_cumprod),
        }
        return {name: values.to(torch.float32) for name, values in exact.items()}

    def alphas_cumprod_at(self, t: int) -> float:
        """alphas_cumprod at step t in float64, for coefficients that float32 would cancel to
        nothing; t = -1 stands for x_0 itself, where it is 1."""
        return self._alphas_cumprod[t]

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Noise images up to step t: x_t ~ q(x_t | x_0), Eq. 4. (B, C, H, W), (B,) -> like x_0."""
        alpha, sigma = self.alpha_sigma(x_0, t)
        return alpha * x_0 + sigma * eps

    def alpha_sigma(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod) at t (B,), to broadcast against x."""
        return (
            extract(self.sqrt_alphas_cumprod, t, x),
            extract(self.sqrt_one_minus_alphas_cumprod, t, x),
        )

    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t-1} | x_t, x_0), Eq. 6 and 7."""
        mean = (
            extract(self.posterior_mean_coef_x_0, t, x_t) * x_0
            + extract(self.posterior_mean_coef_x_t, t, x_t) * x_t
        )
        return mean, extract(self.posterior_variance, t, x_t)

    def predict_eps(self, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
        """The noise that would have turned `x_0` into x_t: Eq. 4 solved for eps."""
        alpha, sigma = self.alpha_sigma(x_t, t)
        return (x_t - alpha * x_0) / sigma

    def predict(self, output: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """What the network's answer to x_t and t (B,) means.

        x_0 is clipped to the range of images, as in Ho et al.'s code, and eps is the one that
        belongs to the clipped x_0.
        """
        output, fraction = self.split(output)
        x_0 = self.objective.predict_x_0(x_t, output, *self.alpha_sigma(x_t, t)).clamp(-1, 1)
        return Prediction(x_0, self.predict_eps(x_t, t, x_0), fraction)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's answer in float32, and apart from it the fraction of a learned variance."""
        output = output.float()
        if not self.objective.learned_variance:
            return output, None
        answer, v = output.chunk(2, dim=1)
        return answer, (v + 1) / 2  # v in [-1, 1], Eq. 15 of Nichol & Dhariwal 2021

    def loss(
        self,
        model: Model,
        x_0: Tensor,
        t: Tensor | None = None,
        eps: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Algorithm 1, lines 2 to 5: the weighted mean error of the prediction, a scalar.

        Args:
            model: predicts what the objective asks for.
            x_0: (B, C, H, W) images in [-1, 1], float32.
            t: (B,) steps, int64; drawn uniformly from all of 0..T-1 if not given.
            eps: standard normal noise like x_0; drawn if not given.
            label: (B,) classes, int64, for a network that takes them.
        """
        if t is None:
            t = torch.randint(self.T, (len(x_0),), device=x_0.device)
        if eps is None:
            eps = torch.randn_like(x_0)
        return self.losses(model, x_0, t, eps, label).mean()

    def losses(
        self, model: Model, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """The loss of each image, of which `loss` is the mean: (B,)."""
        alpha, sigma = self.alpha_sigma(x_0, t)
        x_t = alpha * x_0 + sigma * eps
        output, fraction = self.split(ask(model, x_t, t, label))
        target = self.objective.target(x_0, eps, alpha, sigma)
        losses = self.loss_weights[t] * self.objective.error(output, target)
        if fraction is not None:
            # Clipped as in sampling: far from x_0, the error of eps would drown all other terms.
            x_0_hat = self.objective.predict_x_0(x_t, output.detach(), alpha, sigma).clamp(-1, 1)
            vlb = self.T * self.vb_term(x_0, x_t, t, x_0_hat, fraction)
            losses = losses + self.objective.vlb_weight * vlb
        return losses

    def vb_term(
        self, x_0: Tensor, x_t: Tensor, t: Tensor, x_0_hat: Tensor, fraction: Tensor
    ) -> Tensor:
        """L_{t-1} of the bound with a learned variance, in bits per dimension: (B,).

        The logarithm of the variance lies between those of posterior and forward step (Eq. 15 of
        Nichol & Dhariwal 2021); at t = 0, where the posterior's is 0, that of t = 1 stands in, or
        of the forward step where there is no other.
        """
        mean_q, _ = self.q_posterior(x_0, x_t, t)
        mean_p, _ = self.q_posterior(x_0_hat, x_t, t)
        high = extract(self.betas, t, x_t).log()
        low = extract(self.posterior_variance, t.clamp(min=1), x_t).log() if self.T > 1 else high
        return likelihood.vb_term(
            x_0, mean_q, low, mean_p, fraction * high + (1 - fraction) * low, t
        )

    def schedule_loss(
        self, model: Model, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """The variational bound as a function of the schedule that learns, in bits per dimension.

        An estimate from these images, steps and noise (Kingma et al. 2021, arXiv:2107.00630).
        """
        assert self.schedule is not None
        log_snr = self.schedule.log_snr()

        def predict_x_0(x_t: Tensor, t: Tensor) -> Tensor:
            alpha = extract(log_snr.sigmoid().sqrt(), t, x_t)
            sigma = extract((-log_snr).sigmoid().sqrt(), t, x_t)
            output, _ = self.split(ask(model, x_t, t, label))
            return self.objective.predict_x_0(x_t, output, alpha, sigma)

        return likelihood.schedule_bound(log_snr, predict_x_0, x_0, t, eps)


def on_host(betas: Tensor) -> list[float]:
    """alphas_cumprod of 0..T-1, and 1 behind them, which the index -1 finds."""
    return [*(1 - betas.double()).cumprod(0).tolist(), 1.0]


def ask(model: Model, x_t: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """The model's answer; one that knows no labels need not take any."""
    return model(x_t, t) if label is None else model(x_t, t, label)


def check_betas(betas: Tensor, objective: Objective) -> None:
    """Refuse what is no schedule, and noise without signal where the objective needs some.

    Raises:
        InputError: a beta is out of range, or the last is 1 and the network is to predict eps.
    """
    inner, last = betas[:-1], betas[-1:]
    fine = betas.dim() == 1 and len(betas) > 0
    if not fine or not ((inner > 0) & (inner < 1)).all() or not ((last > 0) & (last <= 1)).all():
        span = f", from {betas.min():g} to {betas.max():g}" if betas.numel() else ""
        raise InputError(
            f"schedule: betas must be (T,), each above 0 and below 1, the last at most 1; these "
            f"are {tuple(betas.shape)}{span}."
        )
    if ((1 - betas).cumprod(0)[:-1] < 1e-60).any():
        raise InputError(
            f"schedule: nothing of x_0 is left long before the last of T={len(betas)} steps; "
            "smaller betas, or fewer steps."
        )
    if last.item() == 1 and objective.needs_signal:
        raise InputError(
            "schedule.zero_terminal_snr=true: x_T is then pure noise, and knowing it says nothing "
            "of x_0, so objective=eps cannot be sampled from; choose objective=v or x_0."
        )
