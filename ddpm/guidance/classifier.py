"""Classifier guidance: follow the gradient of a classifier trained on noisy images."""

from typing import Any

import torch
from torch import Tensor, nn

from ddpm.denoising import Denoiser, Prediction
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.guidance.base import Guidance
from ddpm.pretrained import load_network


class Classifier(Guidance):
    """eps - scale sigma grad log p(label | x_t): Dhariwal & Nichol 2021 (arXiv:2105.05233),
    Algorithm 2, for every sampler; scale 1 is Bayes' rule. The network itself gets no label.

    The classifier may have been trained on another schedule: it is evaluated at its own step with
    the nearest noise level.

    Args:
        classifier: (x_t (B, C, H, W), t (B,)) -> logits (B, K).
        diffusion: the process that it was trained on.
        scale: guidance scale, at least 0.
    """

    labelled = True

    def __init__(self, classifier: nn.Module, diffusion: GaussianDiffusion, scale: float) -> None:
        if not scale >= 0:
            raise InputError(f"guidance.scale={scale}: must be at least 0.")
        self.classifier = classifier
        self.diffusion = diffusion
        self.scale = scale

    def to(self, device: Any) -> "Classifier":
        return Classifier(self.classifier.to(device), self.diffusion.to(device), self.scale)

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor) -> Prediction:
        diffusion, label = denoiser.diffusion, denoiser.label
        unguided = denoiser.predict(x_t, t, None)
        if label is None or self.scale == 0:
            return unguided
        alpha, sigma = diffusion.alpha_sigma_like(x_t, t)
        gradient = self.gradient(diffusion, x_t, t, label)
        # In terms of x_0, because recovering it from eps would divide by a small alpha.
        x_0 = unguided.x_0 + self.scale * sigma**2 / alpha * gradient
        # At alpha = 0, pure noise, the classifier has no information.
        x_0 = diffusion.clip_x_0(torch.where(alpha > 0, x_0, unguided.x_0))
        return Prediction(x_0, diffusion.predict_eps(x_t, t, x_0), unguided.fraction)

    def gradient(
        self, diffusion: GaussianDiffusion, x_t: Tensor, t: Tensor, label: Tensor
    ) -> Tensor:
        """Gradient of log p(label | x_t) with respect to x_t, like x_t."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            logits = self.classifier(x, self.nearest_timestep(diffusion, t)).float()
            log_p = logits.log_softmax(1).gather(1, label[:, None]).sum()
            return torch.autograd.grad(log_p, x)[0]

    def nearest_timestep(self, diffusion: GaussianDiffusion, t: Tensor) -> Tensor:
        """The classifier's step with the noise level of step t (B,); t itself for one schedule."""
        log_snrs = (snr.clamp(min=1e-12).log() for snr in (self.diffusion.snr, diffusion.snr[t]))
        own, wanted = log_snrs
        return (own[None] - wanted[:, None]).abs().argmin(1)


def from_checkpoint(classifier: str, scale: float) -> Classifier:
    """Guidance by a classifier of job=train_classifier.

    Args:
        classifier: the run folder, or a checkpoint in it.
        scale: guidance scale, at least 0.

    Raises:
        InputError: it is no whole checkpoint of such a run.
    """
    try:
        network, diffusion, _, _ = load_network(classifier, job="train_classifier")
    except InputError as error:
        raise InputError(str(error).replace("checkpoint=", "guidance.classifier=", 1)) from None
    return Classifier(network, diffusion, scale)
