"""Painting what a mask leaves open: RePaint (Lugmayr et al. 2022, arXiv:2201.09865).

Nothing is trained for it. The network paints the whole image, step by step, and after each step
what is known is put in its place, with the noise of that step. So that the two agree, a stretch of
the way is taken back, by adding noise to both, and gone again, several times.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm.diffusion import Denoise, GaussianDiffusion
from ddpm.samplers.base import RandnLike, Sampler


def inpaint(
    denoise: Denoise,
    diffusion: GaussianDiffusion,
    sampler: Sampler,
    image: Tensor,
    mask: Tensor,
    x_T: Tensor,
    randn_like: RandnLike,
    *,
    resamples: int,
    jump_length: int,
) -> Iterator[Tensor]:
    """Yield images like x_T after each move of `path`, last of all x_0: Algorithm 1 of RePaint.

    Where the mask is False, x_0 is `image`, to the bit. A sampler that remembers earlier steps has
    to do without, for there is none before a jump that would fit: `p_sample` alone is asked.

    Args:
        denoise: (x_t, t) -> what is believed of x_0.
        image: in [-1, 1], (C, H, W) or (B, C, H, W); what the mask covers is never looked at.
        mask: True where to paint, bool, (1, H, W) or like the image.
        x_T: (B, C, H, W), standard normal.
        resamples: r of the paper, how often each stretch is gone; 1: no jumps.
        jump_length: j of the paper, in steps of the sampler.
    """
    steps = [*(t for t, _ in reversed(sampler.timesteps(diffusion))), -1]  # of level 0, 1, ..., -1
    x = x_T
    # The paper begins with noise everywhere; a schedule that leaves a trace of x_0 at T leaves it
    # here too, which is the same where there is none.
    x = torch.where(mask, x, q_sample(diffusion, image, steps[-2], x))
    for level, goal in path(len(steps) - 1, resamples, jump_length):
        t, s = steps[level], steps[goal]
        if goal > level:
            x = forward(diffusion, x, t, s, randn_like)
        else:
            painted = sampler.p_sample(denoise, diffusion, x, t, s, randn_like)
            known = image if s < 0 else q_sample(diffusion, image, s, randn_like(x))
            x = torch.where(mask, painted, known)
        yield x


def path(levels: int, resamples: int, jump_length: int) -> list[tuple[int, int]]:
    """The moves (from, to) between levels of noise: `levels` - 1 is x_T, -1 is x_0.

    Down by one; on each level 0, jump_length, 2 jump_length, ... up by `jump_length`, the first
    `resamples` - 1 times that it is reached. This is the schedule of appendix A of RePaint, whose
    small steps up are here one.
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


def forward(
    diffusion: GaussianDiffusion, x_s: Tensor, s: int, t: int, randn_like: RandnLike
) -> Tensor:
    """x_t ~ q(x_t | x_s) for s < t: Eq. 2 of Ho et al. 2020, all steps between at once."""
    kept = diffusion.alphas_cumprod_at(t) / diffusion.alphas_cumprod_at(s)
    return math.sqrt(kept) * x_s + math.sqrt(1 - kept) * randn_like(x_s)


def q_sample(diffusion: GaussianDiffusion, image: Tensor, t: int, eps: Tensor) -> Tensor:
    """The image at step t, as often as there is noise eps (B, C, H, W)."""
    steps = torch.full((len(eps),), t, device=eps.device)
    return diffusion.q_sample(image.expand_as(eps), steps, eps)


def area(word: str, image_size: int) -> Tensor:
    """The mask that a word names, bool (1, image_size, image_size): a half, or the centre, a square
    of half the side."""
    half, quarter = image_size // 2, image_size // 4
    rows, columns = {
        "left": (slice(None), slice(half)),
        "right": (slice(None), slice(half, None)),
        "top": (slice(half), slice(None)),
        "bottom": (slice(half, None), slice(None)),
        "center": (slice(quarter, image_size - quarter), slice(quarter, image_size - quarter)),
    }[word]
    mask = torch.zeros(1, image_size, image_size, dtype=torch.bool)
    mask[:, rows, columns] = True
    return mask
