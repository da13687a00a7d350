"""Interpolation between two images: section 4.3 of Ho et al. 2020 (arXiv:2006.11239)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.samplers.base import Randn, Sampler


def interpolate(
    denoiser: Denoiser, sampler: Sampler, pair: Tensor, t: int, num_mixtures: int, randn: Randn
) -> Iterator[Tensor]:
    """Yield mixtures of two images after each step from t down to x_0: (num_mixtures, C, H, W).

    Both images are noised to step t with the same noise, so that the mixtures (1 - l) x_t + l x_t',
    l from 0 to 1, have the noise level of step t. All mixtures share the noise of later steps, too,
    and differ in l alone (figures 8 and 9 of the paper).

    Args:
        denoiser: the network.
        pair: (2, C, H, W), x_0 of both images.
        t: 0..T-1; the larger, the more the network invents.
        num_mixtures: number of values of l, evenly spaced; at least 2.
        randn: noise like an image (1, C, H, W).
    """
    eps = randn(pair[:1])
    steps = torch.full((2,), t, device=pair.device)
    x_t = denoiser.diffusion.q_sample(pair, steps, eps)
    weights = torch.linspace(0, 1, num_mixtures, device=pair.device).reshape(-1, 1, 1, 1)
    mixed = (1 - weights) * x_t[:1] + weights * x_t[1:]

    def shared(x: Tensor) -> Tensor:
        return randn(x[:1]).expand_as(x)

    yield from sampler(denoiser, mixed, shared, start=t)
