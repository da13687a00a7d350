"""The grid of samples a run draws now and then, always from the same noise."""

from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion, Prediction
from ddpm.images import enlarge, make_grid
from ddpm.pipeline import Pipeline, Sampler, in_turn, without_gradients

BATCH = 64


def preview(
    fabric: Fabric, pipeline: Pipeline, num_samples: int, labels: Sequence[int] | None = None
) -> Tensor:
    """A grid of the images of seeds 0, 1, ..., of these classes in turn, each rank drawing a share:
    uint8 (C, H, W)."""
    ranks, rank = fabric.world_size, fabric.global_rank
    share = -(-num_samples // ranks)
    mine = range(rank * share, (rank + 1) * share)
    batches = [mine[i : i + BATCH] for i in range(0, share, BATCH)]
    images = torch.cat([pipeline.sample_seeds(b, in_turn(labels, b, 0)) for b in batches])
    if ranks > 1:
        shares = [torch.empty_like(images, device=fabric.device) for _ in range(ranks)]
        torch.distributed.all_gather(shares, images.to(fabric.device))
        images = torch.cat(shares).cpu()
    return enlarge(make_grid(images[:num_samples]))


def evaluations(sampler: Sampler, diffusion: GaussianDiffusion) -> int:
    """How often a sampler asks the network for an image: counted, on an image of one pixel; 0 where
    it takes none of those."""
    count = 0

    def denoise(x_t: Tensor, t: int) -> Prediction:
        nonlocal count
        count += 1
        return Prediction(x_t, x_t, torch.zeros_like(x_t))

    pixel = torch.zeros(1, 1, 1, 1, device=diffusion.betas.device)
    try:
        for _ in without_gradients(sampler(denoise, diffusion, pixel, torch.zeros_like)):
            pass
    except Exception:  # a sampler of the user's own
        return 0
    return count
