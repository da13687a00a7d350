"""The grid of samples a run draws now and then, always from the same noise."""

from lightning_fabric import Fabric
from torch import Tensor

from ddpm.images import enlarge, make_grid
from ddpm.pipeline import Pipeline


def preview(fabric: Fabric, pipeline: Pipeline, num_samples: int) -> Tensor:
    """A grid of the images of seeds 0, 1, ..., each rank drawing a share: uint8 (C, H, W)."""
    ranks, rank = fabric.world_size, fabric.global_rank
    share = -(-num_samples // ranks)
    images = pipeline.sample(share, seed=rank * share)
    if ranks > 1:
        images = fabric.all_gather(images.to(fabric.device)).flatten(0, 1).cpu()
    return enlarge(make_grid(images[:num_samples]))
