"""3x3 convolutions by Winograd's algorithm, for CPUs in float32.

F(4x4, 3x3) of Lavin & Gray 2016 (arXiv:1509.09308): 4x4 outputs are computed from a tile of 6x6
inputs with 36 multiplications for each pair of channels. PyTorch's convolutions on CPUs compute the
sum as it is defined, with 144. Rounding errors are about ten times as large: 3e-6 of the result.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHANNELS = 128  # of input and output, from which it is faster
TILES = 128  # of all images, from which transforming the kernels pays off
CHUNK = 1 << 20  # values of transformed tiles at a time: they should fit in the cache
TILE = 4

# The transforms of inputs (6), kernels (3) and outputs (4) along one axis.
_INPUT = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_KERNEL = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _both_axes(matrix: Any) -> Tensor:
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one).float()


INPUT, KERNEL, OUTPUT = map(_both_axes, (_INPUT, _KERNEL, _OUTPUT))  # (36, 36), (36, 9), (16, 36)


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


def conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution with padding 1: (B, C, H, W), (O, C, 3, 3) -> (B, O, H, W), in NHWC.
    Differentiable once.

    Args:
        x: H and W are multiples of 4.
    """
    return _Conv3x3.apply(x, weight)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve(x, transformed(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = convolve(dy, transformed(weight.transpose(0, 1).flip(2, 3)))
        if ctx.needs_input_grad[1]:
            dweight = weight_gradient(x, dy)
            if weight.is_contiguous(memory_format=torch.channels_last):  # as optimizers expect it
                dweight = dweight.contiguous(memory_format=torch.channels_last)
        return dx, dweight


def transformed(weight: Tensor) -> Tensor:
    """Kernels (O, C, 3, 3) -> (36, C, O)."""
    outputs, inputs = weight.shape[:2]
    kernels = weight.permute(2, 3, 1, 0).reshape(9, inputs * outputs)
    return (KERNEL @ kernels).view(36, inputs, outputs)


def convolve(x: Tensor, kernels: Tensor) -> Tensor:
    """(B, C, H, W) and transformed kernels (36, C, O) -> (B, O, H, W)."""
    batch, _, height, width = x.shape
    channels = kernels.shape[2]
    y = x.new_empty(batch, height, width, channels)
    for images, tiles in input_tiles(x, channels):
        products = torch.bmm(tiles, kernels)
        tiles_of_y = (OUTPUT @ products.view(36, -1)).view(
            TILE, TILE, -1, height // TILE, width // TILE, channels
        )
        _output_tiles(y[images]).copy_(tiles_of_y)
    return y.permute(0, 3, 1, 2)


def weight_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """(B, C, H, W), (B, O, H, W) -> (O, C, 3, 3)."""
    inputs, outputs = x.shape[1], dy.shape[1]
    gradients = None
    dy = dy.permute(0, 2, 3, 1).contiguous()
    for images, tiles in input_tiles(x, outputs):
        tiles_of_dy = OUTPUT.T @ _output_tiles(dy[images]).reshape(TILE * TILE, -1)
        pair = tiles.transpose(1, 2), tiles_of_dy.view(36, -1, outputs)
        gradients = torch.bmm(*pair) if gradients is None else gradients.baddbmm_(*pair)
    assert gradients is not None
    return (KERNEL.T @ gradients.view(36, -1)).view(3, 3, inputs, outputs).permute(3, 2, 0, 1)


def input_tiles(x: Tensor, outputs: int) -> Iterator[tuple[slice, Tensor]]:
    """Some images at a time, and their transformed tiles: (36, tiles, C)."""
    batch, channels, height, width = x.shape
    padded = x.new_empty(batch, height + 2, width + 2, channels)
    padded[:, [0, -1]] = 0
    padded[:, :, [0, -1]] = 0
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    tiles = padded.unfold(1, TILE + 2, TILE).unfold(2, TILE + 2, TILE).permute(4, 5, 0, 1, 2, 3)
    values = 36 * (height // TILE) * (width // TILE) * max(channels, outputs)
    step = max(1, CHUNK // values)
    for first in range(0, batch, step):
        images = slice(first, first + step)
        chosen = tiles[:, :, images].reshape(36, -1)
        yield images, (INPUT @ chosen).view(36, -1, channels)


def _output_tiles(y: Tensor) -> Tensor:
    """A view of (B, H, W, O) as tiles: (4, 4, B, H/4, W/4, O)."""
    batch, height, width, channels = y.shape
    tiles = y.view(batch, height // TILE, TILE, width // TILE, TILE, channels)
    return tiles.permute(2, 4, 0, 1, 3, 5)
