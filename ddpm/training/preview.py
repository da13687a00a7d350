"""Previews: the grid of samples drawn during training, always from the same noise."""

from collections.abc import Callable, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.images import enlarge, make_grid
from ddpm.pipeline import Pipeline, in_turn, split

BATCH = 64


def preview_grid(
    fabric: Fabric,
    pipeline: Pipeline,
    num_samples: int,
    labels: Sequence[int] | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """A grid of the images of seeds 0, 1, ..., of these classes in turn: uint8 (C, H, W). None if
    it stopped before all were drawn.

    Every rank draws a share of them.

    Args:
        asked_to_stop: whether to stop; collective. Several ranks ask before each batch alone, as
            a sampler may take another number of steps on each.
    """
    ranks, rank = fabric.world_size, fabric.global_rank
    share = -(-num_samples // ranks)
    drawn = []
    for seeds in split(range(rank * share, (rank + 1) * share), BATCH):
        for n, x_t in enumerate(pipeline.trajectory(seeds, in_turn(labels, seeds, 0))):
            if (n == 0 or ranks == 1) and asked_to_stop():
                return None
            x_0 = x_t  # after the last step
        drawn.append(pipeline.diffusion.codec.decode(x_0).cpu())
    images = pipeline.diffusion.codec.show(torch.cat(drawn))
    if ranks > 1:
        shares = [torch.empty_like(images, device=fabric.device) for _ in range(ranks)]
        torch.distributed.all_gather(shares, images.to(fabric.device))
        images = torch.cat(shares).cpu()
    return enlarge(make_grid(images[:num_samples]))
