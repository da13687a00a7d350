"""Interpolation: between two images (section 4.3 of Ho et al. 2020, arXiv:2006.11239), and between
the images of two seeds (as section 5.3 of Song et al. 2021, arXiv:2010.02502)."""

import math
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


def between(first: Randn, second: Randn, num_mixtures: int) -> Randn:
    """Noise between that of two seeds, for `num_mixtures` images at once; at least 2.

    Image i has cos(a) z + sin(a) z' with a from 0 to pi / 2. For independent z and z' that is
    standard normal noise whatever a is, so each image is a sample, and the first and the last one
    are those of the two seeds. This is the spherical interpolation of Song et al. at the angle
    pi / 2, which independent noise of many dimensions has. Samplers that add noise at each step
    take it from here, too.

    Args:
        first, second: noise like an image (1, C, H, W).
    """
    angles = [0.5 * math.pi * i / (num_mixtures - 1) for i in range(num_mixtures)]

    def randn(x: Tensor) -> Tensor:
        z, z_2 = first(x[:1]), second(x[:1])
        mixed = [math.cos(a) * z + math.sin(a) * z_2 for a in angles[1:-1]]
        return torch.cat([z, *mixed, z_2])

    return randn
