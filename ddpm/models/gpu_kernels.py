"""This program's GPU kernels, where they work."""

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.models.cpu_kernels import c_compiler

logger = logging.getLogger(__name__)


class Kernels(NamedTuple):
    group_norm: Callable[..., Tensor]  # of group_norm_triton.py
    add_bias: Callable[..., Tensor]  # of add_bias_triton.py


def kernels_for(x: Tensor) -> Kernels | None:
    """The kernels, if an operation on x should run on them: on a GPU, not in float64, eager."""
    fits = x.is_cuda and x.dtype != torch.float64 and not torch.compiler.is_compiling()
    return gpu_kernels(x.device) if fits else None


def has_gpu_compiler() -> bool:
    """Whether the compiler for GPUs is there: Triton, and the C compiler for its launchers."""
    return importlib.util.find_spec("triton") is not None and c_compiler() is not None


@functools.cache
def gpu_kernels(device: torch.device) -> Kernels | None:
    """The kernels, or None where they do not work: tried once, on small tensors."""
    if not has_gpu_compiler():
        return None
    try:
        from torch.utils._python_dispatch import _disable_current_modes

        from ddpm.models.add_bias_triton import add_bias
        from ddpm.models.group_norm_triton import group_norm

        kernels = Kernels(group_norm, add_bias)
        with _disable_current_modes():  # fake tensors, and counters of memory and FLOP
            try_out(kernels, device)
    except Exception as error:  # of Triton, its driver or the C compiler: they have many
        logger.warning(
            "Triton is installed and does not work here, so PyTorch's slower kernels are taken "
            "(%s: %s)",
            type(error).__name__,
            str(error).strip().partition("\n")[0],
        )
        return None
    return kernels


@torch.inference_mode(False)
@torch.enable_grad()
def try_out(kernels: Kernels, device: torch.device) -> None:
    """Run them forward and backward, on an image of one program and on one that is split."""
    for side in (2, 64):
        x = torch.ones(1, 8, side, side, device=device, requires_grad=True)
        weight = torch.ones(8, device=device, requires_grad=True)
        y = kernels.group_norm(x, 2, weight, weight, 1e-5, "silu", weight)
        kernels.add_bias(y, weight, x).sum().backward()
        assert weight.grad is not None
        weight.grad.cpu()  # errors of a GPU come late
