"""Reductions over all ranks."""

from typing import cast

from lightning_fabric import Fabric
from torch import Tensor


def all_reduce(fabric: Fabric, value: Tensor, op: str) -> Tensor:
    """The "sum", "mean" or "max" of a tensor over all ranks; collective if there are several."""
    if fabric.world_size == 1:
        return value
    return cast(Tensor, fabric.all_reduce(value, reduce_op=op))


def any_rank(fabric: Fabric, value: Tensor) -> Tensor:
    """Whether a condition holds on any rank, elementwise: bool."""
    return all_reduce(fabric, value.float(), "sum") > 0
