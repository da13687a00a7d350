"""GroupNorm and the activation after it in one kernel, for GPUs (Triton).

PyTorch's GroupNorm on GPUs works on NCHW, and cuDNN's convolutions on NHWC: between the two, each
image is copied. These kernels read and write NHWC (`torch.channels_last`), and the normalised
image before the activation is never stored. Without atomic additions, so that results are
deterministic. Import this module only where Triton is installed.

Tiles have three axes: P pixels, G groups and D channels of a group. D and G are padded to powers
of two, as Triton requires.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

PROGRAMS = 128  # of a kernel, at most, where images are split among programs
SPLIT = 16_384  # values of an image that a program takes, at least
TILE = 4_096  # values of an image that a program holds at a time
WARPS = 8

# What a kernel computes: all of it, or one of two stages, if an image is split among programs.
BOTH, SUMS, RESULT = 0, 1, 2


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    activation: str,
    shift: Tensor | None = None,
) -> Tensor:
    """activation(group norm of x + shift): (B, C, H, W) -> the same, in NHWC, of the dtype of x.

    Sum, statistics and activation are computed in float32. Differentiable once.

    Args:
        weight, bias: (C,).
        activation: "none", "silu" or "gelu".
        shift: (C,) or (B, C).
    """
    shift = None if shift is None else shift.expand(len(x), -1).contiguous()
    weight, bias = weight.contiguous(), bias.contiguous()
    return _GroupNorm.apply(x, groups, weight, bias, eps, activation, shift)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        groups: int,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        activation: str,
        shift: Tensor | None,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.empty_like(x)
        statistics = x.new_empty(2, len(x), groups, dtype=torch.float32)  # means and 1 / std
        ctx.save_for_backward(x, weight, bias, shift, statistics)
        ctx.groups, ctx.activation = groups, activation
        plan, parts = _plan(x, groups)
        sums = x.new_empty(len(x), parts, 2, groups, dtype=torch.float32)
        if isinstance(x, FakeTensor):  # it has a size and no content: only memory is measured
            return y
        with torch.cuda.device_of(x):
            for stage in _stages(parts):
                _forward[(len(x), parts)](
                    x,
                    weight,
                    bias,
                    shift,
                    y,
                    statistics,
                    sums,
                    eps,
                    STAGE=stage,
                    ACTIVATION=activation,
                    **plan,
                )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, shift, statistics = ctx.saved_tensors
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        plan, parts = _plan(x, ctx.groups)
        # sums over the pixels of each image, part and channel: of du x^, du and x^
        kinds = 2 if shift is None else 3
        sums = x.new_empty(len(x), parts, kinds, x.shape[1], dtype=torch.float32)
        dshift = None if shift is None else torch.empty_like(shift)
        stages = () if isinstance(x, FakeTensor) else _stages(parts)
        with torch.cuda.device_of(x):
            for stage in stages:
                _backward[(len(x), parts)](
                    dy,
                    x,
                    weight,
                    bias,
                    shift,
                    statistics,
                    dx,
                    dshift,
                    sums,
                    STAGE=stage,
                    ACTIVATION=ctx.activation,
                    **plan,
                )
        dweight, dbias = sums[:, :, :2].sum((0, 1))
        return dx, None, dweight.to(weight.dtype), dbias.to(bias.dtype), None, None, dshift


def _plan(x: Tensor, groups: int) -> tuple[dict[str, Any], int]:
    """Arguments of a kernel, and how many programs share an image, each of `share` pixels."""
    batch, channels, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
    depth = channels // groups
    padded = triton.next_power_of_2(groups) * triton.next_power_of_2(depth)
    splits = max(1, min(PROGRAMS // batch, pixels * channels // SPLIT))
    tile = min(max(1, TILE // padded), triton.next_power_of_2(pixels))
    share = -(-pixels // splits)
    share = -(-share // tile) * tile  # in whole tiles
    arguments = {
        "pixels": pixels,
        "share": share,
        "G": groups,
        "D": depth,
        "P": tile,
        "PADDED_G": triton.next_power_of_2(groups),
        "PADDED_D": triton.next_power_of_2(depth),
        "num_warps": WARPS if tile * padded >= 2048 else 4,
    }
    return arguments, -(-pixels // share)


def _stages(parts: int) -> tuple[int, ...]:
    return (BOTH,) if parts == 1 else (SUMS, RESULT)


@triton.jit
def _activated(u, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return u * tl.sigmoid(u)
    elif ACTIVATION == "gelu":
        return 0.5 * u * (1 + tl.erf(u * 0.7071067811865476))
    else:
        return u


@triton.jit
def _slope(u, ACTIVATION: tl.constexpr):
    """Derivative of the activation."""
    if ACTIVATION == "silu":
        s = tl.sigmoid(u)
        return s * (1 + u * (1 - s))
    elif ACTIVATION == "gelu":
        density = tl.exp(-0.5 * u * u) * 0.3989422804014327
        return 0.5 * (1 + tl.erf(u * 0.7071067811865476)) + u * density
    else:
        return tl.full(u.shape, 1.0, tl.float32)


@triton.jit
def _shift(shift_ptr, here, real):
    """The shift of each channel."""
    if shift_ptr is None:
        return 0.0
    else:
        return tl.load(shift_ptr + here, real, 0.0).to(tl.float32)


@triton.jit
def _forward(
    x_ptr,  # (B, pixels, C)
    weight_ptr,  # (C,)
    bias_ptr,
    shift_ptr,  # (B, C), or None
    y_ptr,  # like x
    statistics_ptr,  # (2, B, G): means and 1 / std
    sums_ptr,  # (B, S, 2, G): of each part, the mean and the sum of squared differences from it
    eps,
    pixels,
    share,
    STAGE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    PADDED_G: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    image, part, S = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    p = tl.arange(0, P)[:, None, None]
    g = tl.arange(0, PADDED_G)[None, :, None]
    d = tl.arange(0, PADDED_D)[None, None, :]
    real = (g < G) & (d < D)
    offset = image.to(tl.int64) * pixels * (G * D) + g * D + d
    first, last = part * share, tl.minimum(part * share + share, pixels)
    shift = _shift(shift_ptr, image * (G * D) + g * D + d, real)
    mean = tl.zeros((1, PADDED_G, 1), tl.float32)
    squares = tl.zeros((1, PADDED_G, 1), tl.float32)

    if STAGE != 2:
        seen = 0.0  # values of a group so far; Chan et al. 1983: how means of parts are combined
        for start in range(first, last, P):
            inside = real & (start + p < last)
            here = offset + (start + p) * (G * D)
            x = tl.where(inside, tl.load(x_ptr + here, inside, 0.0).to(tl.float32) + shift, 0.0)
            n = (tl.minimum(P, last - start) * D).to(tl.float32)
            tile_mean = tl.sum(tl.sum(x, 2, keep_dims=True), 0, keep_dims=True) / n
            away = tl.where(inside, x - tile_mean, 0.0)
            tile_squares = tl.sum(tl.sum(away * away, 2, keep_dims=True), 0, keep_dims=True)
            difference = tile_mean - mean
            mean += difference * (n / (seen + n))
            squares += tile_squares + difference * difference * (seen * n / (seen + n))
            seen += n
        if STAGE == 1:
            sums = sums_ptr + (image * S + part) * 2 * G + g
            tl.store(sums, mean, g < G)
            tl.store(sums + G, squares, g < G)

    if STAGE != 1:
        if STAGE == 2:
            seen = 0.0
            for s in range(S):
                n = ((tl.minimum(s * share + share, pixels) - s * share) * D).to(tl.float32)
                sums = sums_ptr + (image * S + s) * 2 * G + g
                difference = tl.load(sums, g < G, 0.0) - mean
                mean += difference * (n / (seen + n))
                squares += tl.load(sums + G, g < G, 0.0)
                squares += difference * difference * (seen * n / (seen + n))
                seen += n
        rstd = 1 / tl.sqrt(squares / (pixels * D) + eps)
        if part == 0:
            statistics = statistics_ptr + image * G + g
            tl.store(statistics, mean, g < G)
            tl.store(statistics + tl.num_programs(0) * G, rstd, g < G)
        weight = tl.load(weight_ptr + g * D + d, real, 0.0).to(tl.float32)
        bias = tl.load(bias_ptr + g * D + d, real, 0.0).to(tl.float32)
        for start in range(first, last, P):
            inside = real & (start + p < last)
            here = offset + (start + p) * (G * D)
            x = tl.load(x_ptr + here, inside, 0.0).to(tl.float32) + shift
            u = (x - mean) * rstd * weight + bias
            tl.store(y_ptr + here, _activated(u, ACTIVATION), inside)


@triton.jit
def _backward(
    dy_ptr,  # (B, pixels, C)
    x_ptr,
    weight_ptr,  # (C,)
    bias_ptr,
    shift_ptr,  # (B, C), or None
    statistics_ptr,  # (2, B, G): means and 1 / std
    dx_ptr,  # like x
    dshift_ptr,  # like shift
    sums_ptr,  # (B, S, 2 or 3, C): sums over the pixels of each part: of du x^, du and x^
    pixels,
    share,
    STAGE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    PADDED_G: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    image, part, S = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    p = tl.arange(0, P)[:, None, None]
    g = tl.arange(0, PADDED_G)[None, :, None]
    d = tl.arange(0, PADDED_D)[None, None, :]
    real = (g < G) & (d < D)
    offset = image.to(tl.int64) * pixels * (G * D) + g * D + d
    first, last = part * share, tl.minimum(part * share + share, pixels)
    kinds = 2 if shift_ptr is None else 3
    shift = _shift(shift_ptr, image * (G * D) + g * D + d, real)
    statistics = statistics_ptr + image * G + g
    mean = tl.load(statistics, g < G, 0.0)
    rstd = tl.load(statistics + tl.num_programs(0) * G, g < G, 0.0)
    weight = tl.load(weight_ptr + g * D + d, real, 0.0).to(tl.float32)
    bias = tl.load(bias_ptr + g * D + d, real, 0.0).to(tl.float32)
    dweight = tl.zeros((1, PADDED_G, PADDED_D), tl.float32)  # of this image
    dbias = tl.zeros((1, PADDED_G, PADDED_D), tl.float32)
    sum_x_hat = tl.zeros((1, PADDED_G, PADDED_D), tl.float32)

    if STAGE != 2:
        for start in range(first, last, P):
            inside = real & (start + p < last)
            here = offset + (start + p) * (G * D)
            x = tl.load(x_ptr + here, inside, 0.0).to(tl.float32) + shift
            x_hat = (x - mean) * rstd
            du = tl.load(dy_ptr + here, inside, 0.0).to(tl.float32)  # 0 outside
            du *= _slope(x_hat * weight + bias, ACTIVATION)
            dweight += tl.sum(du * x_hat, 0, keep_dims=True)
            dbias += tl.sum(du, 0, keep_dims=True)
            if shift_ptr is not None:
                sum_x_hat += tl.sum(tl.where(inside, x_hat, 0.0), 0, keep_dims=True)
        sums = sums_ptr + (image * S + part) * (kinds * G * D) + g * D + d
        tl.store(sums, dweight, real)
        tl.store(sums + G * D, dbias, real)
        if shift_ptr is not None:
            tl.store(sums + 2 * G * D, sum_x_hat, real)

    if STAGE != 1:
        if STAGE == 2:
            for s in range(S):
                sums = sums_ptr + (image * S + s) * (kinds * G * D) + g * D + d
                dweight += tl.load(sums, real, 0.0)
                dbias += tl.load(sums + G * D, real, 0.0)
                if shift_ptr is not None:
                    sum_x_hat += tl.load(sums + 2 * G * D, real, 0.0)
        along = tl.sum(weight * dweight, 2, keep_dims=True) / (pixels * D)
        level = tl.sum(weight * dbias, 2, keep_dims=True) / (pixels * D)
        if shift_ptr is not None and part == 0:  # the sum of dx over the pixels
            dshift = (weight * dbias - pixels * level - sum_x_hat * along) * rstd
            tl.store(dshift_ptr + image * (G * D) + g * D + d, dshift, real)
        for start in range(first, last, P):
            inside = real & (start + p < last)
            here = offset + (start + p) * (G * D)
            x = tl.load(x_ptr + here, inside, 0.0).to(tl.float32) + shift
            x_hat = (x - mean) * rstd
            du = tl.load(dy_ptr + here, inside, 0.0).to(tl.float32)
            du *= _slope(x_hat * weight + bias, ACTIVATION)
            dx = (du * weight - level - x_hat * along) * rstd
            tl.store(dx_ptr + here, dx, inside)
