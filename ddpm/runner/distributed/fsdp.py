"""Fully sharded data parallel training (FSDP): each rank holds a part of every weight.

A sharded weight is a DTensor: it has the shape of the full tensor, and each rank stores some rows.
Files always hold full tensors.
"""

from typing import Any

import torch
from torch import Tensor, nn


def shard(model: nn.Module, mesh: Any) -> None:
    """Shard a network over a one-dimensional device mesh, in place, block by block.

    Each rank must hold the same weights. A block is gathered while it computes and resharded
    afterwards. The parameter objects are replaced: create optimizers afterwards.
    """
    from torch.distributed.fsdp import fully_shard

    for parameter in model.parameters():  # FSDP shards contiguous tensors only
        parameter.data = parameter.data.contiguous()
    for block in blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # Reshard the root too: otherwise it keeps unsharded weights after a forward pass, and previews
    # would use a stale EMA.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that are sharded one by one: the children of the network, or the items of a child
    that is a ModuleList. Single layers are sharded with the network itself."""
    children = [
        part
        for child in model.children()
        for part in (child if isinstance(child, nn.ModuleList) else [child])
    ]
    return [part for part in children if any(True for _ in part.children()) and _has_weights(part)]


def _has_weights(part: nn.Module) -> bool:
    return next(part.parameters(), None) is not None


def is_sharded(tensor: Any) -> bool:
    """Whether this rank holds only a part of the tensor."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def gather(node: Any, keep: bool = True) -> Any:
    """Dicts, lists and tensors with every sharded tensor replaced by the full one on the CPU.
    Collective: all ranks must call it with the same structure.

    Args:
        keep: whether this rank needs the result; otherwise full tensors are replaced by None.
    """
    if is_sharded(node):
        full = node.full_tensor()
        return full.cpu() if keep else None
    if isinstance(node, dict):
        return {key: gather(value, keep) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(gather(value, keep) for value in node)
    return node


def distribute(tensor: Tensor, like: Any) -> Tensor:
    """This rank's part of a full tensor if `like` is sharded, otherwise the tensor itself."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.detach().to(like.device).contiguous()  # as the weights are, see `shard`
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def full_norm(norm: Any) -> Tensor:
    """A norm over all ranks, as a plain tensor."""
    return norm.full_tensor() if is_sharded(norm) else norm


def all_finite(tensor: Any) -> bool:
    """Whether all elements are finite, on all ranks; the same answer on each."""
    if not is_sharded(tensor):
        return bool(torch.isfinite(tensor).all())
    nonfinite = (~torch.isfinite(tensor.to_local())).any().float()
    torch.distributed.all_reduce(nonfinite, group=tensor.device_mesh.get_group())
    return not nonfinite.item()
