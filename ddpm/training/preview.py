"""Previews: the grid of samples drawn during training, always from the same noise."""

from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.images import enlarge, make_grid
from ddpm.pipeline import Pipeline, in_turn, split

BATCH = 64


def preview_grid(
    fabric: Fabric, pipeline: Pipeline, num_samples: int, labels: Sequence[int] | None = None
) -> Tensor:
    """A grid of the images of seeds 0, 1, ..., of these classes in turn: uint8 (C, H, W).

    Every rank draws a share of them.
    """
    ranks, rank = fabric.world_size, fabric.global_rank
    share = -(-num_samples // ranks)
    batches = split(range(rank * share, (rank + 1) * share), BATCH)
    images = torch.cat([pipeline.sample_seeds(b, in_turn(labels, b, 0)) for b in batches])
    images = pipeline.diffusion.codec.show(images)
    if ranks > 1:
        shares = [torch.empty_like(images, device=fabric.device) for _ in range(ranks)]
        torch.distributed.all_gather(shares, images.to(fabric.device))
        images = torch.cat(shares).cpu()
    return enlarge(make_grid(images[:num_samples]))
