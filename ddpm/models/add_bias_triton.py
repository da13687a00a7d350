"""A bias and a residual added to a convolution's result in one kernel, for GPUs (Triton).

PyTorch adds them one after the other, and its sum over all pixels of an NHWC image, the gradient of
the bias, takes several times as long as reading the image. Without atomic additions, so that
results are deterministic. Import this module only where Triton is installed.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

BLOCK = 4_096  # values that a program adds
PROGRAMS = 512  # of a sum, at most: each sums the pixels of one part
TILE = 4_096  # values that a program sums at a time
ROWS = 64  # pixels that a program sums, at least


def add_bias(x: Tensor, bias: Tensor, plus: Tensor | None = None) -> Tensor:
    """x + bias + plus, summed in float32: (B, C, H, W) -> the same, in NHWC. Differentiable once.

    Args:
        bias: (C,); the result has the dtype of x and `plus`, whatever that of the bias.
        plus: of the shape of x.
    """
    if plus is not None and plus.shape != x.shape:
        raise ValueError(f"plus has shape {tuple(plus.shape)}, the convolution {tuple(x.shape)}")
    return _AddBias.apply(x, bias.contiguous(), plus)


class _AddBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, plus: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        dtype = x.dtype
        if plus is not None:
            plus = plus.contiguous(memory_format=torch.channels_last)
            dtype = torch.promote_types(dtype, plus.dtype)
        y = torch.empty_like(x, dtype=dtype)
        ctx.bias_dtype = bias.dtype
        ctx.dtypes = x.dtype, None if plus is None else plus.dtype
        if not isinstance(x, FakeTensor):  # it has a size and no content: only memory is measured
            with torch.cuda.device_of(x):
                programs = triton.cdiv(x.numel(), BLOCK)
                _add[(programs,)](x, bias, plus, y, x.numel(), C=x.shape[1], BLOCK=BLOCK)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dplus = (None if dtype is None else dy.to(dtype) for dtype in ctx.dtypes)
        dbias = pixel_sum(dy).to(ctx.bias_dtype) if ctx.needs_input_grad[1] else None
        return dx, dbias, dplus


def pixel_sum(x: Tensor) -> Tensor:
    """Sum over images and pixels in float32: (B, C, H, W) -> (C,)."""
    x = x.contiguous(memory_format=torch.channels_last)
    channels = x.shape[1]
    pixels = x.numel() // channels
    share = max(ROWS, triton.cdiv(pixels, PROGRAMS))
    parts = triton.cdiv(pixels, share)
    sums = x.new_empty(parts, channels, dtype=torch.float32)
    if not isinstance(x, FakeTensor):
        padded = triton.next_power_of_2(channels)
        rows = max(1, TILE // padded)
        with torch.cuda.device_of(x):
            _sum[(parts,)](x, sums, pixels, share, C=channels, PADDED_C=padded, P=rows)
    return sums.sum(0)


@triton.jit
def _add(
    x_ptr,  # (B, pixels, C)
    bias_ptr,  # (C,)
    plus_ptr,  # like x, or None
    y_ptr,  # like x
    numel,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    here = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = here < numel
    y = tl.load(x_ptr + here, real).to(tl.float32)
    y += tl.load(bias_ptr + here % C, real).to(tl.float32)
    if plus_ptr is not None:
        y += tl.load(plus_ptr + here, real).to(tl.float32)
    tl.store(y_ptr + here, y, real)


@triton.jit
def _sum(
    x_ptr,  # (pixels of all images, C)
    sums_ptr,  # (programs, C)
    pixels,
    share,  # pixels of a program
    C: tl.constexpr,
    PADDED_C: tl.constexpr,
    P: tl.constexpr,
):
    part = tl.program_id(0)
    c = tl.arange(0, PADDED_C)[None, :]
    p = tl.arange(0, P)[:, None]
    last = tl.minimum(part * share + share, pixels)
    total = tl.zeros((P, PADDED_C), tl.float32)
    for start in range(part * share, last, P):
        inside = (c < C) & (start + p < last)
        here = (start + p).to(tl.int64) * C + c
        total += tl.load(x_ptr + here, inside, 0.0).to(tl.float32)
    tl.store(sums_ptr + part * C + c, tl.sum(total, 0, keep_dims=True), c < C)
