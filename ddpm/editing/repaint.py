"""Inpainting without training: RePaint (Lugmayr et al. 2022, arXiv:2201.09865).

The network denoises the whole image, and after each step the known pixels are replaced by the given
image, noised to the same step. To make both parts agree, the process repeatedly jumps back (adds
noise to both) and denoises the same stretch again.
"""

from collections.abc import Iterator
from math import sqrt

import torch
from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.diffusion import GaussianDiffusion
from ddpm.limits.image_size import Size, sides
from ddpm.samplers.base import Randn, Sampler


def inpaint(
    denoiser: Denoiser,
    sampler: Sampler,
    image: Tensor,
    mask: Tensor,
    x_T: Tensor,
    randn: Randn,
    *,
    resamples: int,
    jump_length: int,
) -> Iterator[Tensor]:
    """Yield the images after each move of `path`, x_0 last: Algorithm 1 of RePaint.

    Where the mask is False, x_0 equals `image` to the bit. Samplers take single steps
    (`p_sample`): a multistep sampler cannot use its history across a jump.

    Args:
        denoiser: the network.
        image: x_0 of the given image, (C, H, W) or (B, C, H, W); ignored where the mask is True.
        mask: bool, True where to paint, (1, H, W) or like the image.
        x_T: (B, C, H, W), standard normal.
        resamples: r of the paper, how often each stretch is denoised; 1: no jumps.
        jump_length: j of the paper, in steps of the sampler.
    """
    diffusion = denoiser.diffusion
    steps = [*(t for t, _ in reversed(sampler.timesteps(diffusion))), -1]  # of level 0, 1, ..., -1
    x = x_T
    # The paper begins with pure noise everywhere. Where the schedule leaves a trace of x_0 at T,
    # known pixels begin with that trace; where it does not, both are the same.
    x = torch.where(mask, x, q_sample(diffusion, image, steps[-2], x))
    for level, goal in path(len(steps) - 1, resamples, jump_length):
        t, s = steps[level], steps[goal]
        if goal > level:
            x = forward(diffusion, x, t, s, randn)
        else:
            painted = sampler.p_sample(denoiser, x, t, s, randn)
            known = image if s < 0 else q_sample(diffusion, image, s, randn(x))
            x = torch.where(mask, painted, known)
        yield x


def path(levels: int, resamples: int, jump_length: int) -> list[tuple[int, int]]:
    """The moves (from, to) between noise levels: `levels` - 1 is x_T, -1 is x_0.

    Down by one; on each level 0, jump_length, 2 jump_length, ... up by `jump_length`, the first
    `resamples` - 1 times that it is reached. This is the schedule of appendix A of RePaint, with
    each jump up as one move.
    """
    jumps = dict.fromkeys(range(0, levels - jump_length, jump_length), resamples - 1)
    moves, level = [], levels - 1
    while level >= 0:
        moves.append((level, level - 1))
        level -= 1
        if jumps.get(level, 0) > 0:
            jumps[level] -= 1
            moves.append((level, level + jump_length))
            level += jump_length
    return moves


def forward(diffusion: GaussianDiffusion, x_s: Tensor, s: int, t: int, randn: Randn) -> Tensor:
    """x_t ~ q(x_t | x_s) for s < t: Eq. 2 of Ho et al. 2020, all steps between at once."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = diffusion.alpha_sigma(s), diffusion.alpha_sigma(t)
    kept = alpha_t / alpha_s
    return kept * x_s + sqrt(sigma_t**2 - (kept * sigma_s) ** 2) * randn(x_s)


def q_sample(diffusion: GaussianDiffusion, image: Tensor, t: int, eps: Tensor) -> Tensor:
    """The image noised to step t, once for each noise of eps (B, C, H, W)."""
    steps = torch.full((len(eps),), t, device=eps.device)
    return diffusion.q_sample(image.expand_as(eps), steps, eps)


def area(name: str, image_size: Size) -> Tensor:
    """A mask by name, bool (1, height, width): a half, or the centre of half the sides."""
    height, width = sides(image_size)
    h, w = height // 4, width // 4
    rows, columns = {
        "left": (slice(None), slice(width // 2)),
        "right": (slice(None), slice(width // 2, None)),
        "top": (slice(height // 2), slice(None)),
        "bottom": (slice(height // 2, None), slice(None)),
        "center": (slice(h, height - h), slice(w, width - w)),
    }[name]
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, rows, columns] = True
    return mask
