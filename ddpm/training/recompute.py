"""Activation checkpointing: less memory for more arithmetic (Chen et al. 2016, arXiv:1604.06174).

A block stores its inputs, not its intermediate results; the backward pass recomputes those.
Parameters, their names and the gradients stay the same, with dropout, too.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddpm.errors import InputError


def recompute(network: nn.Module) -> None:
    """Recompute the blocks of a network in the backward pass, in place.

    Raises:
        InputError: the network has no recomputable blocks.
    """
    for block in blocks(network):
        # On this instance only: copies made before, such as the averaged network, are unchanged.
        block.forward = functools.partial(_recomputed, block.forward)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The modules to recompute: the outermost of the types in the network's `recomputable`.

    Raises:
        InputError: there are none.
    """
    types = getattr(network, "recomputable", ())
    modules = _outermost(network, tuple(types))
    if not modules:
        raise InputError(
            f"job.recompute=true: {type(network).__name__} has no blocks to recompute (its class "
            "lists them in `recomputable`). Leave it out, or choose model=unet, resunet or dit."
        )
    return modules


def _outermost(module: nn.Module, types: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    if isinstance(module, types):
        return [module]
    return [block for child in module.children() for block in _outermost(child, types)]


def _recomputed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """`forward`, checkpointed. The second pass restores the random generators, so that dropout is
    the same."""
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(functools.partial(forward, **options), *inputs, use_reentrant=False)
