"""Classifier-free guidance: away from what the network says to no label, towards its label's."""

import torch
from torch import Tensor

from ddpm.diffusion import NO_LABEL, GaussianDiffusion, Model, Prediction, ask
from ddpm.errors import InputError
from ddpm.guidance.base import Guidance


class ClassifierFree(Guidance):
    """eps_u + scale (eps_c - eps_u): Ho & Salimans 2022 (arXiv:2207.12598), whose w is scale - 1.

    Scale 0 is unconditional, 1 conditional, above 1 more so. It is the network's answer that is
    mixed, whatever the objective: eps, x_0 and v are affine in each other at a given x_t, so all
    three mixtures are the same. Both branches are one batch of twice the size. A learned variance
    is the conditional branch's.

    Args:
        scale: see above.
        rescale: how far, 0 to 1, to bring the mixture's contrast back to that of the conditional
            answer; 0.7 suits zero-terminal-SNR schedules (Lin et al. 2023, arXiv:2305.08891,
            Eq. 15-16).
    """

    def __init__(self, *, scale: float, rescale: float = 0.0) -> None:
        if not scale >= 0:
            raise InputError(f"guidance.scale={scale}: must be at least 0.")
        if not 0 <= rescale <= 1:
            raise InputError(f"guidance.rescale={rescale}: must be from 0 to 1.")
        self.scale = scale
        self.rescale = rescale

    def __call__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: Tensor,
        label: Tensor | None,
    ) -> Prediction:
        if label is None or self.scale == 0:
            return diffusion.predict(ask(model, x_t, t, None), x_t, t)
        if self.scale == 1:
            return diffusion.predict(ask(model, x_t, t, label), x_t, t)
        labels = torch.cat([torch.full_like(label, NO_LABEL), label])
        output = ask(model, torch.cat([x_t, x_t]), torch.cat([t, t]), labels).float()
        unconditional, conditional = output.chunk(2)
        mixed = unconditional + self.scale * (conditional - unconditional)
        channels = x_t.shape[1]  # behind them, a learned variance
        answer = self.tone_down(mixed[:, :channels], conditional[:, :channels])
        return diffusion.predict(torch.cat([answer, conditional[:, channels:]], dim=1), x_t, t)

    def tone_down(self, mixed: Tensor, conditional: Tensor) -> Tensor:
        """Give the mixture the standard deviation of the conditional answer, or go some of the way:
        Eq. 15 and 16 of Lin et al. 2023."""
        if self.rescale == 0:
            return mixed
        over = tuple(range(1, mixed.dim()))
        ratio = conditional.std(over, keepdim=True) / mixed.std(over, keepdim=True)
        return mixed * (self.rescale * ratio + 1 - self.rescale)
