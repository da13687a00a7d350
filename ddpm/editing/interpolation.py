"""Between two images: section 4.3 of Ho et al. 2020 (arXiv:2006.11239), figures 8 and 9."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm.diffusion import Denoise, GaussianDiffusion
from ddpm.samplers.base import RandnLike, Sampler


def interpolate(
    denoise: Denoise,
    diffusion: GaussianDiffusion,
    sampler: Sampler,
    pair: Tensor,
    t: int,
    num_mixtures: int,
    randn_like: RandnLike,
) -> Iterator[Tensor]:
    """Yield mixtures of two images, x_s (num_mixtures, C, H, W) from step t down to x_0.

    Both are noised to step t with the same noise, so that their mixtures (1 - l) x_t + l x_t' have
    as much of it as they, for l from 0 to 1. All mixtures share the noise of later steps, too, so
    that they differ in l alone.

    Args:
        denoise: (x_t, t) -> what is believed of x_0.
        pair: (2, C, H, W) in [-1, 1].
        t: from 0 to T - 1; the larger, the more of the images is left to the network.
        num_mixtures: how many l, evenly spaced; at least 2.
        randn_like: noise like an image (1, C, H, W).
    """
    eps = randn_like(pair[:1])
    x_t = diffusion.q_sample(pair, torch.full((2,), t, device=pair.device), eps)
    weights = torch.linspace(0, 1, num_mixtures, device=pair.device).reshape(-1, 1, 1, 1)
    mixed = (1 - weights) * x_t[:1] + weights * x_t[1:]

    def shared(x: Tensor) -> Tensor:
        return randn_like(x[:1]).expand_as(x)

    yield from sampler(denoise, diffusion, mixed, shared, start=t)
