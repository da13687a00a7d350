"""Classifier guidance: up the gradient of a classifier that was trained on noisy images."""

from typing import Any

import torch
from torch import Tensor, nn

from ddpm.diffusion import GaussianDiffusion, Model, Prediction, ask
from ddpm.errors import InputError
from ddpm.guidance.base import Guidance
from ddpm.pretrained import load_network


class Classifier(Guidance):
    """eps - scale sqrt(1 - alphas_cumprod) grad log p(label | x_t): Dhariwal & Nichol 2021
    (arXiv:2105.05233), Algorithm 2, for every sampler; scale 1 is Bayes' rule. The network itself
    is asked without a label.

    The classifier may have been trained on another schedule: it is asked about the step of its own
    whose noise level is nearest.

    Args:
        classifier: (x_t (B, C, H, W), t (B,)) -> logits (B, K).
        diffusion: the process whose x_t it was trained on.
        scale: see above.
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

    def __call__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: Tensor,
        label: Tensor | None,
    ) -> Prediction:
        plain = diffusion.predict(ask(model, x_t, t, None), x_t, t)
        alpha, sigma = diffusion.alpha_sigma(x_t, t)
        if label is None or self.scale == 0:
            return plain
        gradient = self.gradient(diffusion, x_t, t, label)
        # The same in terms of x_0, which must not be taken out of x_t again where alpha is small.
        x_0 = plain.x_0 + self.scale * sigma**2 / alpha * gradient
        # From pure noise (alpha = 0) there is nothing to read, for the classifier neither.
        x_0 = torch.where(alpha > 0, x_0, plain.x_0).clamp(-1, 1)
        return Prediction(x_0, diffusion.predict_eps(x_t, t, x_0), plain.fraction)

    def gradient(
        self, diffusion: GaussianDiffusion, x_t: Tensor, t: Tensor, label: Tensor
    ) -> Tensor:
        """grad of log p(label | x_t) with respect to x_t, like it."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            logits = self.classifier(x, self.step_of(diffusion, t)).float()
            log_p = logits.log_softmax(1).gather(1, label[:, None]).sum()
            return torch.autograd.grad(log_p, x)[0]

    def step_of(self, diffusion: GaussianDiffusion, t: Tensor) -> Tensor:
        """The classifier's own step with the noise of step t (B,): the same t for one schedule."""
        own, wanted = (snr.clamp(min=1e-12).log() for snr in (self.diffusion.snr, diffusion.snr[t]))
        return (own[None] - wanted[:, None]).abs().argmin(1)


def from_run(classifier: str, scale: float) -> Classifier:
    """Guidance by what a run of job=train_classifier has learned.

    Args:
        classifier: the run's folder, or a checkpoint of it.
        scale: how much the gradient counts.

    Raises:
        InputError: it is not a whole checkpoint of such a run.
    """
    try:
        network, diffusion, _, _ = load_network(classifier, job="train_classifier")
    except InputError as error:
        raise InputError(str(error).replace("checkpoint=", "guidance.classifier=", 1)) from None
    return Classifier(network, diffusion, scale)
