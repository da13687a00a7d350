"""What a network's output means: predictions of x_0 and eps, and the training loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm import likelihood
from ddpm.diffusion import GaussianDiffusion, extract

# (x_t (B, C, H, W), t (B,), label (B,) or none) -> what the objective asks for, shaped like x_t,
# with twice the channels if the variance is learned. NO_LABEL is the null class, as is None.
Model = Callable[..., Tensor]
NO_LABEL = -1


class Prediction(NamedTuple):
    """Estimate of x_0 and eps given x_t, which satisfy Eq. 4 of Ho et al. 2020; float32.

    With a learned variance, `fraction` in [0, 1] interpolates the log variance of a reverse step
    between the posterior's (0) and the forward step's (1).
    """

    x_0: Tensor
    eps: Tensor
    fraction: Tensor | None = None


@dataclass(eq=False)
class Denoiser:
    """A network in the form that samplers use: (x_t, t) -> Prediction.

    Args:
        model: the network.
        diffusion: the process that it was trained on.
        guidance: (denoiser, x_t, t (B,)) -> Prediction; None: the network's own prediction.
        label: (B,) classes of the images, int64, or None.
    """

    model: Model
    diffusion: GaussianDiffusion
    guidance: "Callable[[Denoiser, Tensor, Tensor], Prediction] | None" = None
    label: Tensor | None = None

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        """alpha and sigma at step t, float64; (1, 0) at t = -1, which stands for x_0."""
        return self.diffusion.alpha_sigma(t)

    def __call__(self, x_t: Tensor, t: int) -> Prediction:
        """Prediction for images x_t (B, C, H, W), all at step t."""
        steps = torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)
        if self.guidance is None:
            return self.predict(x_t, steps, self.label)
        return self.guidance(self, x_t, steps)

    def predict(self, x_t: Tensor, t: Tensor, label: Tensor | None) -> Prediction:
        """The network's own prediction at t (B,) for a label (B,)."""
        output = network_output(self.diffusion, self.model, x_t, t, label)
        return predict(self.diffusion, output, x_t, t)


def network_output(
    diffusion: GaussianDiffusion, model: Model, x_t: Tensor, t: Tensor, label: Tensor | None
) -> Tensor:
    """The model's output for x_t and t (B,), which the objective may scale first."""
    inputs = diffusion.objective.inputs(x_t, t, *diffusion.alpha_sigma_like(x_t, t))
    return call_model(model, *inputs, label)


def call_model(model: Model, x_t: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """The model's output; a model without labels is called without the argument."""
    return model(x_t, t) if label is None else model(x_t, t, label)


def predict(diffusion: GaussianDiffusion, output: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
    """Prediction from the network's output for x_t and t (B,); eps belongs to the clipped x_0."""
    x_0, fraction = predict_x_0(diffusion, output, x_t, t)
    return clipped(diffusion, x_0, x_t, t, fraction)


def predict_x_0(
    diffusion: GaussianDiffusion, output: Tensor, x_t: Tensor, t: Tensor
) -> tuple[Tensor, Tensor | None]:
    """x_0, unclipped, from the network's output for x_t and t (B,), and the fraction of a learned
    variance."""
    output, fraction = split_output(diffusion, output)
    scales = diffusion.alpha_sigma_like(x_t, t)
    return diffusion.objective.predict_x_0(x_t, output, *scales), fraction


def clipped(
    diffusion: GaussianDiffusion, x_0: Tensor, x_t: Tensor, t: Tensor, fraction: Tensor | None
) -> Prediction:
    """Prediction with x_0 clipped, and the eps that belongs to it."""
    x_0 = diffusion.clip_x_0(x_0)
    return Prediction(x_0, diffusion.predict_eps(x_t, t, x_0), fraction)


def split_output(diffusion: GaussianDiffusion, output: Tensor) -> tuple[Tensor, Tensor | None]:
    """The objective's part of the output in float32, and the fraction of a learned variance."""
    output = output.float()
    if not diffusion.objective.learned_variance:
        return output, None
    output, v = output.chunk(2, dim=1)
    return output, (v + 1) / 2  # v in [-1, 1], Eq. 15 of Nichol & Dhariwal 2021


def training_loss(
    diffusion: GaussianDiffusion,
    model: Model,
    x_0: Tensor,
    t: Tensor | None = None,
    eps: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """Algorithm 1, lines 2 to 5, of Ho et al. 2020: the weighted mean error, a scalar.

    Args:
        diffusion: the process, which holds objective and weighting.
        model: the network in training.
        x_0: (B, C, H, W) images in [-1, 1], float32.
        t: (B,) steps, int64; None: drawn.
        eps: standard normal noise like x_0; None: drawn.
        label: (B,) classes, int64, for a network that takes them.
    """
    if t is None:
        t = diffusion.timesteps(len(x_0), diffusion.T, x_0.device)
    if eps is None:
        eps = torch.randn_like(x_0)
    return training_losses(diffusion, model, x_0, t, eps, label).mean()


def training_losses(
    diffusion: GaussianDiffusion,
    model: Model,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    label: Tensor | None = None,
) -> Tensor:
    """The loss of each image, (B,); `training_loss` is its mean."""
    objective = diffusion.objective
    alpha, sigma = diffusion.alpha_sigma_like(x_0, t)
    x_t = alpha * x_0 + sigma * eps
    inputs = objective.inputs(x_t, t, alpha, sigma)
    output, fraction = split_output(diffusion, call_model(model, *inputs, label))
    target = objective.target(x_0, eps, alpha, sigma)
    losses = diffusion.loss_weights[t] * objective.error(output, target)
    if fraction is not None:
        # Clipped as in sampling: far from x_0, the error of eps would dominate all other terms.
        x_0_hat = diffusion.clip_x_0(objective.predict_x_0(x_t, output.detach(), alpha, sigma))
        vlb = diffusion.T * variance_bound(diffusion, x_0, x_t, t, x_0_hat, fraction)
        losses = losses + objective.vlb_weight * vlb
    return losses


def variance_bound(
    diffusion: GaussianDiffusion,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    x_0_hat: Tensor,
    fraction: Tensor,
) -> Tensor:
    """L_{t-1} of the bound with a learned variance, in bits per dimension: (B,).

    The log variance interpolates between those of the posterior and of the forward step (Eq. 15 of
    Nichol & Dhariwal 2021, arXiv:2102.09672). At t = 0 the posterior has none; that of t = 1 takes
    its place or, if T = 1, that of the forward step.
    """
    mean_q, _ = diffusion.q_posterior(x_0, x_t, t)
    mean_p, _ = diffusion.q_posterior(x_0_hat, x_t, t)
    high = extract(diffusion.betas, t, x_t).log()
    low = high
    if diffusion.T > 1:
        low = extract(diffusion.posterior_variance, t.clamp(min=1), x_t).log()
    log_variance = fraction * high + (1 - fraction) * low
    return likelihood.vb_term(x_0, mean_q, low, mean_p, log_variance, t)


def schedule_loss(
    diffusion: GaussianDiffusion,
    model: Model,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    label: Tensor | None = None,
) -> Tensor:
    """Estimate of the variational bound as a function of a learned schedule, in bits/dim: a scalar.

    Kingma et al. 2021 (arXiv:2107.00630), for these images, steps and noise.
    """
    assert diffusion.schedule is not None
    log_snr = diffusion.schedule.log_snr()

    def predict_x_0(x_t: Tensor, t: Tensor) -> Tensor:
        alpha = extract(log_snr.sigmoid().sqrt(), t, x_t)
        sigma = extract((-log_snr).sigmoid().sqrt(), t, x_t)
        inputs = diffusion.objective.inputs(x_t, t, alpha, sigma)
        output, _ = split_output(diffusion, call_model(model, *inputs, label))
        return diffusion.objective.predict_x_0(x_t, output, alpha, sigma)

    return likelihood.schedule_bound(log_snr, predict_x_0, x_0, t, eps)
