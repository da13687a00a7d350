"""How labels, or a weaker network, steer a prediction: the interface of guidance."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ddpm.denoising import Denoiser, Prediction
from ddpm.diffusion import GaussianDiffusion

Interval = Sequence[float] | None  # two numbers


class Guidance(ABC):
    """Turns a network's predictions into the one that a sampler uses.

    `labelled`: whether it uses labels even if the network takes none.
    """

    labelled = False

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor) -> Prediction:
        """Prediction for x_t (B, C, H, W) at t (B,), given `denoiser.label`, (B,) or None."""

    def to(self, device: torch.device | str) -> "Guidance":
        """This guidance, whose own networks and their processes are moved to a device."""
        for part in vars(self).values():
            if isinstance(part, nn.Module):
                part.to(device)
        return self


def within_interval(
    interval: Interval,
    diffusion: GaussianDiffusion,
    t: Tensor,
    plain: Callable[[], Prediction],
    guided: Callable[[], Prediction],
) -> Prediction:
    """The guided prediction where the noise level sigma / alpha of t (B,) is above the first and at
    most the second end of the interval, and the plain one elsewhere, which is all that is computed
    if no t is inside: Kynkäänniemi et al. 2024 (arXiv:2404.07724).

    Without an interval, the guided one.
    """
    if interval is None:
        return guided()
    level = diffusion.snr[t].rsqrt()
    inside = (level > interval[0]) & (level <= interval[1])
    if not inside.any():
        return plain()
    if inside.all():
        return guided()
    one, other = guided(), plain()
    rows = inside.reshape(-1, *[1] * (one.x_0.dim() - 1))
    fraction = None
    if one.fraction is not None and other.fraction is not None:
        fraction = torch.where(rows, one.fraction, other.fraction)
    x_0, eps = (torch.where(rows, a, b) for a, b in zip(one[:2], other[:2], strict=True))
    return Prediction(x_0, eps, fraction)


def nearest_timestep(own: GaussianDiffusion, diffusion: GaussianDiffusion, t: Tensor) -> Tensor:
    """The step of a process with the noise level nearest to that of step t (B,) of another; t
    itself for one schedule."""
    levels, wanted = (snr.clamp(min=1e-12).log() for snr in (own.snr, diffusion.snr[t]))
    return (levels[None] - wanted[:, None]).abs().argmin(1)
