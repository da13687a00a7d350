"""Classifier guidance: follow the gradient of a classifier trained on noisy images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddpm.denoising import Denoiser, Prediction, clipped
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.guidance.base import Guidance, Interval, nearest_timestep, within_interval
from ddpm.limits.parts import check_limits
from ddpm.pretrained import load_network


@dataclass(eq=False)
class Classifier(Guidance):
    """eps - scale sigma grad log p(label | x_t): Dhariwal & Nichol 2021 (arXiv:2105.05233),
    Algorithm 2, for every sampler; scale 1 is Bayes' rule. The network itself gets no label.

    The classifier may have been trained on another schedule: it is evaluated at its own step with
    the nearest noise level.

    Args:
        classifier: (x_t (B, C, H, W), t (B,)) -> logits (B, K).
        diffusion: the process that it was trained on.
        scale: guidance scale, at least 0.
        interval: of noise levels sigma / alpha at which to guide, see `base.within_interval`.
    """

    labelled = True

    classifier: nn.Module
    diffusion: GaussianDiffusion
    scale: float
    interval: Interval = None

    def __post_init__(self) -> None:
        check_limits("guidance", scale=self.scale, interval=self.interval)

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor) -> Prediction:
        label = denoiser.label
        unguided = denoiser.predict(x_t, t, None)
        if label is None or self.scale == 0:
            return unguided
        return within_interval(
            self.interval,
            denoiser.diffusion,
            t,
            lambda: unguided,
            lambda: self.guided(denoiser.diffusion, unguided, x_t, t, label),
        )

    def guided(
        self,
        diffusion: GaussianDiffusion,
        unguided: Prediction,
        x_t: Tensor,
        t: Tensor,
        label: Tensor,
    ) -> Prediction:
        """The network's prediction, moved by the classifier's gradient."""
        alpha, sigma = diffusion.alpha_sigma_like(x_t, t)
        gradient = self.gradient(diffusion, x_t, t, label)
        # In terms of x_0, because recovering it from eps would divide by a small alpha.
        x_0 = unguided.x_0 + self.scale * sigma**2 / alpha * gradient
        # At alpha = 0, pure noise, the classifier has no information.
        x_0 = torch.where(alpha > 0, x_0, unguided.x_0)
        return clipped(diffusion, x_0, x_t, t, unguided.fraction)

    def gradient(
        self, diffusion: GaussianDiffusion, x_t: Tensor, t: Tensor, label: Tensor
    ) -> Tensor:
        """Gradient of log p(label | x_t) with respect to x_t, like x_t."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            own_t = nearest_timestep(self.diffusion, diffusion, t)
            logits = self.classifier(x, own_t).float()
            log_p = logits.log_softmax(1).gather(1, label[:, None]).sum()
            return torch.autograd.grad(log_p, x)[0]


def from_checkpoint(classifier: str, scale: float = 1.0, interval: Interval = None) -> Classifier:
    """Guidance by a classifier of job=train_classifier.

    Args:
        classifier: the run folder, or a checkpoint in it.
        scale: guidance scale, at least 0.
        interval: of noise levels at which to guide; None: all.

    Raises:
        InputError: it is no whole checkpoint of such a run.
    """
    try:
        network, diffusion, _, _ = load_network(classifier, job="train_classifier")
    except InputError as error:
        raise InputError(str(error).replace("checkpoint=", "guidance.classifier=", 1)) from None
    return Classifier(network, diffusion, scale, interval)
