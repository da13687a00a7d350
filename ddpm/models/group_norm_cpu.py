"""GroupNorm and the activation after it in one kernel, for CPUs: see group_norm.c.

As group_norm_triton.py for GPUs. What lies between the two is never stored, and kept for the
backward pass is x alone.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddpm.models.cpu_kernels import batch_size, cpu_kernels, kernels_for

LANES = 16  # channels come in multiples of it
BLOCK = 256  # pixels whose sums it stores
SMALLEST = 1 << 16  # values of x: below, PyTorch's operations are faster
ACTIVATIONS = {"none": 0, "silu": 1, "gelu": 2}  # in group_norm.c


def is_faster(x: Tensor, *others: Tensor | None, activation: str) -> bool:
    """Whether the kernel can compute a group norm, and is faster than PyTorch's: as measured.

    Args:
        others: weight, bias and shift.
    """
    if torch.jit.is_tracing():
        return False
    pixels, channels = x.shape[2] * x.shape[3], x.shape[1]
    given = [tensor for tensor in others if tensor is not None]
    return (
        x.is_cpu
        and all(tensor.dtype == torch.float32 for tensor in (x, *given))
        and all(tensor.shape[-1] == channels for tensor in given)
        and channels % LANES == 0
        and batch_size(x) * channels * pixels >= SMALLEST
        and pixels >= (256 if activation == "none" else 64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and cpu_kernels() is not None
    )


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    activation: str,
    shift: Tensor | None = None,
) -> Tensor:
    """activation(group norm of x + shift): (B, C, H, W) -> the same, in NHWC. Differentiable once.

    Args:
        weight, bias: (C,).
        activation: of ACTIVATIONS.
        shift: (C,) or (B, C).
    """
    if shift is not None:
        shift = shift.expand(len(x), -1).contiguous()
    weight, bias = weight.contiguous(), bias.contiguous()
    return _GroupNorm.apply(x, groups, weight, bias, float(eps), ACTIVATIONS[activation], shift)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        groups: int,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        activation: int,
        shift: Tensor | None,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        shape = batch, pixels, channels = len(x), x.shape[2] * x.shape[3], x.shape[1]
        y = torch.empty_like(x)
        statistics = x.new_empty(2, batch, groups)  # means and 1 / std
        sums = x.new_empty(batch, math.ceil(pixels / BLOCK), 2, channels)
        factors = x.new_empty(batch, 2, channels)
        if call := kernels_for(x):
            tensors = x, shift, weight, bias, y, statistics, sums, factors
            call("group_norm", *tensors, eps, *shape, groups, activation)
        ctx.save_for_backward(x, shift, weight, bias, statistics)
        ctx.activation = activation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, weight, bias, statistics = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        shape = batch, pixels, channels = len(x), x.shape[2] * x.shape[3], x.shape[1]
        dx = torch.empty_like(x)
        gradients = x.new_empty(3, batch, channels)
        sums = x.new_empty(batch, math.ceil(pixels / BLOCK), 3, channels)
        factors = x.new_empty(batch, 5, channels)
        if call := kernels_for(x):
            tensors = dy, x, shift, weight, bias, statistics, dx, gradients, sums, factors
            call("group_norm_backward", *tensors, *shape, statistics.shape[2], ctx.activation)
        dbias, dweight = gradients[:2].sum(1)
        dshift = None if shift is None else gradients[2]
        return dx, None, dweight, dbias, None, None, dshift
