"""The interface of augmentation: random transformations whose parameters the network gets."""

from typing import Protocol

import torch
from torch import Tensor


class Augment(Protocol):
    """Transforms training pictures at random, and says how.

    Args:
        dim: number of parameters that the network gets with each picture; the key `augment.dim`.
    """

    dim: int

    def __call__(
        self, x_0: Tensor, generator: torch.Generator, rows: slice, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """x_0 (B, C, H, W), transformed, and what was done, float32 (B, dim): 0 for nothing.

        The generator's numbers are drawn for the global batch of `batch_size`; x_0 is its `rows`.
        """
        ...
