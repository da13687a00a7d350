"""Classifier-free guidance: extrapolate from the unconditional to the conditional output."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.denoising import NO_LABEL, Denoiser, Prediction, network_output, predict
from ddpm.guidance.base import Guidance, Interval, within_interval
from ddpm.limits.parts import check_limits


@dataclass(kw_only=True, eq=False)
class ClassifierFree(Guidance):
    """eps_u + scale (eps_c - eps_u): Ho & Salimans 2022 (arXiv:2207.12598), whose w is scale - 1.

    Scale 0 is unconditional, 1 conditional, above 1 guided. The network's outputs are mixed,
    whatever the objective: all of them are affine in each other at a given x_t, so their mixtures
    are the same. Both branches run as one batch of twice the size. A learned variance
    comes from the conditional branch.

    Args:
        scale: guidance scale, at least 0.
        rescale: 0 to 1, how far to bring the contrast of the mixture back to that of the
            conditional output; 0.7 suits zero-terminal-SNR schedules (Lin et al. 2023,
            arXiv:2305.08891, Eq. 15-16).
        interval: of noise levels sigma / alpha at which to guide; elsewhere the scale is 1. See
            `base.within_interval`.
    """

    scale: float = 2.0
    rescale: float = 0.0
    interval: Interval = None

    def __post_init__(self) -> None:
        check_limits("guidance", scale=self.scale, rescale=self.rescale, interval=self.interval)

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor) -> Prediction:
        label = denoiser.label
        if label is None or self.scale == 0:
            return denoiser.predict(x_t, t, None)
        if self.scale == 1:
            return denoiser.predict(x_t, t, label)
        return within_interval(
            self.interval,
            denoiser.diffusion,
            t,
            lambda: denoiser.predict(x_t, t, label),
            lambda: self.guided(denoiser, x_t, t, label),
        )

    def guided(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, label: Tensor) -> Prediction:
        """The prediction from the mixture of both outputs."""
        labels = torch.cat([torch.full_like(label, NO_LABEL), label])
        doubled = torch.cat([x_t, x_t]), torch.cat([t, t])
        outputs = network_output(denoiser.diffusion, denoiser.model, *doubled, labels)
        unconditional, conditional = outputs.float().chunk(2)
        mixed = unconditional + self.scale * (conditional - unconditional)
        channels = x_t.shape[1]  # the following ones hold a learned variance
        output = self.rescale_guidance(mixed[:, :channels], conditional[:, :channels])
        output = torch.cat([output, conditional[:, channels:]], dim=1)
        return predict(denoiser.diffusion, output, x_t, t)

    def rescale_guidance(self, mixed: Tensor, conditional: Tensor) -> Tensor:
        """Scale the mixture towards the standard deviation of the conditional output: Eq. 15 and 16
        of Lin et al. 2023."""
        if self.rescale == 0:
            return mixed
        dims = tuple(range(1, mixed.dim()))
        ratio = conditional.std(dims, keepdim=True) / mixed.std(dims, keepdim=True)
        return mixed * (self.rescale * ratio + 1 - self.rescale)
