"""Networks shared out over devices, each holding a part of every weight (FSDP).

To the rest of the program a weight is then a DTensor: a tensor of the whole shape, of which each
rank has some rows. What is written to files is whole, and what is read from files is whole.
"""

from typing import Any

import torch
from torch import Tensor, nn


def shard(model: nn.Module, mesh: Any) -> None:
    """Share a network out over a one-dimensional device mesh, in place, block by block.

    Each rank must hold the same weights. A block's weights come together on a device while it
    computes, and go again. Parameters become other objects: optimizers are to be made afterwards.
    """
    from torch.distributed.fsdp import fully_shard

    for parameter in model.parameters():  # no other order of the memory can be shared out
        parameter.data = parameter.data.contiguous()
    for block in blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # The outermost would stay whole after a forward pass, and a preview see the average of old.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The parts of a network that are shared out one by one: its children, or where a child is a
    list of modules, those in it. Single layers stay with the network itself."""
    children = [
        part
        for child in model.children()
        for part in (child if isinstance(child, nn.ModuleList) else [child])
    ]
    return [part for part in children if any(True for _ in part.children()) and _weights(part)]


def _weights(part: nn.Module) -> bool:
    return next(part.parameters(), None) is not None


def is_shared(tensor: Any) -> bool:
    """Whether this rank holds a part of the tensor only."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def whole(node: Any, keep: bool = True) -> Any:
    """Dicts, lists and tensors with every tensor whole, those that were shared on the CPU. All
    ranks call it, tensor by tensor alike.

    Args:
        keep: whether this rank wants them; otherwise it gets None for a tensor that was shared.
    """
    if is_shared(node):
        full = node.full_tensor()
        return full.cpu() if keep else None
    if isinstance(node, dict):
        return {key: whole(value, keep) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(whole(value, keep) for value in node)
    return node


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, where `like` is shared; else the tensor itself."""
    if not is_shared(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.detach().to(like.device).contiguous()  # as the weights are, see `shard`
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def norm_of(norm: Tensor) -> Tensor:
    """A norm over all ranks, as a plain tensor."""
    return norm.full_tensor() if is_shared(norm) else norm


def shared_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor is finite, on whatever rank; known alike to all."""
    if not is_shared(tensor):
        return bool(torch.isfinite(tensor).all())
    broken = (~torch.isfinite(tensor.to_local())).any().float()
    torch.distributed.all_reduce(broken, group=tensor.device_mesh.get_group())
    return not broken.item()
