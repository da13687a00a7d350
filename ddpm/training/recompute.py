"""Activation checkpointing: less memory for more arithmetic (Chen et al. 2016, arXiv:1604.06174).

A block keeps its inputs for the backward pass, and not what it computes from them: the backward
pass computes that once more. Parameters, their names and the gradients stay the same, also with
dropout.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddpm.errors import InputError


def recompute(network: nn.Module) -> None:
    """Let the blocks of a network be computed again in the backward pass, in place.

    Raises:
        InputError: the network names no blocks.
    """
    for block in blocks(network):
        # Of this instance alone: a copy made before, such as the averaged network, stays as it is.
        block.forward = functools.partial(_recomputed, block.forward)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The modules that are recomputed: those of the types in the network's `recomputable`, without
    the ones inside of another such module.

    Raises:
        InputError: there are none.
    """
    types = getattr(network, "recomputable", ())
    found = _outermost(network, tuple(types))
    if not found:
        raise InputError(
            f"job.recompute=true: {type(network).__name__} has no blocks to recompute (its class "
            "names them in `recomputable`). Leave it out, or choose model=unet or resunet."
        )
    return found


def _outermost(module: nn.Module, types: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    if isinstance(module, types):
        return [module]
    return [block for child in module.children() for block in _outermost(child, types)]


def _recomputed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """What `forward` returns; the state of the random generators is put back for the second pass,
    so that dropout drops the same."""
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(functools.partial(forward, **options), *inputs, use_reentrant=False)
