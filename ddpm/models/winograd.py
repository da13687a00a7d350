"""3x3 convolutions by Winograd's algorithm, for CPUs in float32.

F(4x4, 3x3) of Lavin & Gray 2016 (arXiv:1509.09308): y = A^T [(G g G^T) * (B^T d B)] A computes a
tile of 4x4 outputs from a tile d of 6x6 inputs and a kernel g, with 36 multiplications for each
pair of channels. PyTorch's convolutions on CPUs compute the sum as it is defined, with 144.
Rounding errors are about ten times as large: 3e-6 of the result.

B^T, A^T and G are written out below as sums of slices, and are applied to rows, then to columns:
the six numbers of an axis belong to the points 0, 1, -1, 2, -2 and infinity.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHANNELS = 128  # of input and output, from which it is faster
TILES = 128  # of all images, from which transforming the kernels pays off
CHUNK = 1 << 20  # values of transformed tiles at a time: they should fit in the cache
TILE = 4

Transform = Callable[[Tensor, Tensor], None]  # (m, ...), to be written: (n, ...)


def is_faster(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: Any) -> bool:
    """Whether this algorithm can compute a convolution, and is faster than PyTorch's."""
    return (
        x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= CHANNELS
        and weight.shape[2:] == (3, 3)
        and stride == (1, 1)
        and padding == (1, 1)
        and x.shape[2] % TILE == x.shape[3] % TILE == 0
        and len(x) * x.shape[2] * x.shape[3] >= TILES * TILE**2
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution with padding 1: (B, C, H, W), (O, C, 3, 3), (O,) -> (B, O, H, W), in NHWC.
    Differentiable once.

    Args:
        x: H and W are multiples of 4.
    """
    return _Conv3x3.apply(x, weight, bias)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve(x, transformed(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = convolve(dy, transformed(weight.transpose(0, 1).flip(2, 3)))
        if ctx.needs_input_grad[1]:
            dweight = weight_gradient(x, dy)
            if weight.is_contiguous(memory_format=torch.channels_last):  # as optimizers expect it
                dweight = dweight.contiguous(memory_format=torch.channels_last)
        if ctx.needs_input_grad[2]:
            dbias = dy.sum((0, 2, 3))
        return dx, dweight, dbias


def transformed(weight: Tensor) -> Tensor:
    """Kernels (O, C, 3, 3) -> (36, O, C)."""
    kernels = weight.new_empty(6, 6, *weight.shape[:2])
    on_both_axes(kernel_transform, weight.permute(2, 3, 0, 1), kernels)
    return kernels.flatten(0, 1)


def convolve(x: Tensor, kernels: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, C, H, W), transformed kernels (36, O, C), (O,) -> (B, O, H, W)."""
    batch, _, height, width = x.shape
    channels = kernels.shape[1]
    y = x.new_empty(batch, height, width, channels)
    for images, tiles in input_tiles(x, channels):
        products = torch.bmm(tiles, kernels.transpose(1, 2))
        products = products.view(6, 6, -1, height // TILE, width // TILE, channels)
        if bias is not None:
            products[1, 1] += bias  # at the point 1, whose column of A^T is (1, 1, 1, 1)
        on_both_axes(output_transform, products, output_tiles(y[images]))
    return y.permute(0, 3, 1, 2)


def weight_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """(B, C, H, W), (B, O, H, W) -> (O, C, 3, 3)."""
    inputs, outputs = x.shape[1], dy.shape[1]
    kernels = x.new_zeros(36, outputs, inputs)
    dy = dy.permute(0, 2, 3, 1).contiguous()
    for images, tiles in input_tiles(x, outputs):
        tiles_of_dy = output_tiles(dy[images])
        products = x.new_empty(6, 6, *tiles_of_dy.shape[2:])
        on_both_axes(output_transform_transposed, tiles_of_dy, products)
        kernels.baddbmm_(products.view(36, -1, outputs).transpose(1, 2), tiles)
    dweight = x.new_empty(3, 3, outputs, inputs)
    on_both_axes(kernel_transform_transposed, kernels.view(6, 6, outputs, inputs), dweight)
    return dweight.permute(2, 3, 0, 1)


def input_tiles(x: Tensor, outputs: int) -> Iterator[tuple[slice, Tensor]]:
    """Some images at a time, and their transformed tiles: (36, tiles, C)."""
    batch, channels, height, width = x.shape
    padded = x.new_empty(batch, height + 2, width + 2, channels)
    padded[:, [0, -1]] = 0
    padded[:, :, [0, -1]] = 0
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    tiles_per_image = (height // TILE) * (width // TILE)
    step = max(1, CHUNK // (36 * tiles_per_image * max(channels, outputs)))
    for first in range(0, batch, step):
        images = slice(first, first + step)
        rows = _overlapping(padded[images], 1)
        half = x.new_empty(rows.shape)
        input_transform(rows, half)
        columns = _overlapping(half, 3)
        tiles = x.new_empty(columns.shape)
        input_transform(columns, tiles.movedim(1, 0))
        yield images, tiles.view(36, -1, channels)


def _overlapping(x: Tensor, axis: int) -> Tensor:
    """A view of an axis as the overlapping six rows of each tile, which come first."""
    return x.unfold(axis, TILE + 2, TILE).movedim(-1, 0)


def output_tiles(y: Tensor) -> Tensor:
    """A view of (B, H, W, O) as tiles: (4, 4, B, H/4, W/4, O)."""
    batch, height, width, channels = y.shape
    tiles = y.view(batch, height // TILE, TILE, width // TILE, TILE, channels)
    return tiles.permute(2, 4, 0, 1, 3, 5)


def on_both_axes(transform: Transform, tiles: Tensor, out: Tensor) -> None:
    """Transform the first two axes of tiles: (m, m, ...), to be written: (n, n, ...)."""
    half = out.new_empty(len(out), *tiles.shape[1:])
    transform(tiles, half)
    transform(half.movedim(1, 0), out.movedim(1, 0))


def input_transform(d: Tensor, out: Tensor) -> None:
    """B^T d: (6, ...) -> (6, ...)."""
    torch.add(torch.sub(d[4], d[2], alpha=5), d[0], alpha=4, out=out[0])
    even, odd = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    _add_and_subtract(even, odd, out[1], out[2])
    even, odd = torch.sub(d[4], d[2], out=even), torch.sub(d[3], d[1], out=odd)
    _add_and_subtract(even, odd, out[3], out[4], scale=2)
    torch.add(torch.sub(d[5], d[3], alpha=5), d[1], alpha=4, out=out[5])


def kernel_transform(g: Tensor, out: Tensor) -> None:
    """G g: (3, ...) -> (6, ...)."""
    torch.mul(g[0], 1 / 4, out=out[0])
    _add_and_subtract((g[0] + g[2]).mul_(-1 / 6), g[1], out[1], out[2], scale=-1 / 6)
    even = torch.add(g[2], g[0], alpha=1 / 4).mul_(1 / 6)
    _add_and_subtract(even, g[1], out[3], out[4], scale=1 / 12)
    out[5].copy_(g[2])


def output_transform(m: Tensor, out: Tensor) -> None:
    """A^T m: (6, ...) -> (4, ...)."""
    even, odd = m[1] + m[2], m[1] - m[2]
    even_2, odd_2 = m[3] + m[4], m[3] - m[4]
    torch.add(even + m[0], even_2, out=out[0])
    torch.add(odd, odd_2, alpha=2, out=out[1])
    torch.add(even, even_2, alpha=4, out=out[2])
    torch.add(odd.add_(m[5]), odd_2, alpha=8, out=out[3])


def output_transform_transposed(y: Tensor, out: Tensor) -> None:
    """A y: (4, ...) -> (6, ...)."""
    out[0].copy_(y[0])
    _add_and_subtract(y[0] + y[2], y[1] + y[3], out[1], out[2])
    even, odd = torch.add(y[0], y[2], alpha=4), torch.add(y[1], y[3], alpha=4)
    _add_and_subtract(even, odd, out[3], out[4], scale=2)
    out[5].copy_(y[3])


def kernel_transform_transposed(m: Tensor, out: Tensor) -> None:
    """G^T m: (6, ...) -> (3, ...)."""
    even, odd = m[1] + m[2], m[1] - m[2]
    even_2, odd_2 = m[3] + m[4], m[3] - m[4]
    torch.add(torch.sub(even_2, even, alpha=4), m[0], alpha=6, out=out[0]).mul_(1 / 24)
    torch.sub(odd_2, odd, alpha=2, out=out[1]).mul_(1 / 12)
    torch.add(torch.sub(even_2, even), m[5], alpha=6, out=out[2]).mul_(1 / 6)


def _add_and_subtract(
    even: Tensor, odd: Tensor, plus: Tensor, minus: Tensor, scale: float = 1
) -> None:
    """even + scale odd and even - scale odd: the values at a point and at its negative."""
    torch.add(even, odd, alpha=scale, out=plus)
    torch.sub(even, odd, alpha=scale, out=minus)
