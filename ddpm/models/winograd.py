"""3x3 convolutions by Winograd's algorithm, for CPUs in float32.

F(4x4, 3x3) of Lavin & Gray 2016 (arXiv:1509.09308): y = A^T [(G g G^T) * (B^T d B)] A computes a
tile of 4x4 outputs from a tile d of 6x6 inputs and a kernel g, with 36 multiplications for each
pair of channels. PyTorch's convolutions on CPUs compute the sum as it is defined, with 144.
Rounding errors are about ten times as large: 3e-6 of the result.

B^T, A^T and G are written out below as sums of slices, and are applied to rows, then to columns:
the six numbers of an axis belong to the points 0, 1, -1, 2, -2 and infinity. `winograd.c` does the
same in one pass over memory, where a C compiler is installed.
"""

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _disable_current_modes

from ddpm.models.cpu_kernels import batch_size, cpu_kernels, kernels_for

CHUNK = 1 << 20  # values of transformed tiles at a time: they should fit in the cache
TILE = 4
LANES = 16  # in winograd.c channels come in multiples of it


def is_faster(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: Any) -> bool:
    """Whether this algorithm can compute a convolution, and is faster than PyTorch's."""
    if torch.jit.is_tracing():
        return False
    tiles = x.shape[2] * x.shape[3] // TILE**2
    return (
        x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and stride == (1, 1)
        and padding == (1, 1)
        and x.shape[2] % TILE == x.shape[3] % TILE == 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and _is_large(weight.shape[1], weight.shape[0], batch_size(x) * tiles)
    )


def _is_large(inputs: int, outputs: int, tiles: int) -> bool:
    """Whether a convolution is large enough for the transforms to pay off: as measured."""
    channels = min(inputs, outputs)
    if channels >= 128 and tiles >= 128:
        return True
    least = 32 if torch.is_grad_enabled() else 64  # most of the gain is in the backward pass
    if channels < least or tiles < 32 or channels * tiles < 4096:
        return False
    return inputs % LANES == outputs % LANES == 0 and cpu_kernels() is not None


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None
) -> Tensor:
    """Convolution with padding 1, + plus: (B, C, H, W), (O, C, 3, 3) -> (B, O, H, W), in NHWC.
    Differentiable once.

    Args:
        x: H and W are multiples of 4.
        bias: (O,).
        plus: (B, O, H, W).
    """
    if plus is not None:
        if plus.dtype != x.dtype:
            return conv2d(x, weight, bias) + plus
        plus = plus.expand(len(x), len(weight), *x.shape[2:])
    bias = None if bias is None else bias.contiguous()
    return _Conv3x3.apply(x, weight, bias, plus)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        if is_counted(x, weight):
            count_workspaces(x, len(weight))
            _copies = nhwc(x), nhwc(weight), None if plus is None else nhwc(plus)
            return x.new_empty(len(x), *x.shape[2:], len(weight)).permute(0, 3, 1, 2)
        kernels = to_tiles(KERNEL, nhwc(weight)).permute(1, 2, 0)
        return convolve(x, kernels, bias, plus)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = dweight = dbias = None
        if is_counted(x, weight):
            count_workspaces(dy, x.shape[1])
            _copies = nhwc(x), nhwc(weight)
            dx, dweight = torch.empty_like(x), torch.empty_like(weight)
        else:
            if ctx.needs_input_grad[0]:
                kernels = to_tiles(KERNEL, nhwc(weight.flip(2, 3))).transpose(0, 1)
                dx = convolve(dy, kernels)
            if ctx.needs_input_grad[1]:
                dweight = weight_gradient(x, dy)
                if not weight.is_contiguous(memory_format=torch.channels_last):
                    dweight = dweight.contiguous()  # as optimizers expect it
        if ctx.needs_input_grad[2]:
            dbias = dy.sum((0, 2, 3))
        return dx, dweight, dbias, dy if ctx.needs_input_grad[3] else None


def convolve(
    x: Tensor, kernels: Tensor, bias: Tensor | None = None, plus: Tensor | None = None
) -> Tensor:
    """(B, C, H, W), transformed kernels (36, C, O), (O,), (B, O, H, W) -> (B, O, H, W)."""
    batch, _, height, width = x.shape
    channels = kernels.shape[2]
    y = x.new_empty(batch, height, width, channels)
    x, plus = nhwc(x), None if plus is None else nhwc(plus)
    for images in chunks(x, channels):
        tiles = to_tiles(INPUT, x[images])
        products = workspace("products", x, 36, len(tiles), channels)
        torch.bmm(tiles.transpose(0, 1), kernels, out=products)
        to_images(OUTPUT, products, y[images], bias, None if plus is None else plus[images])
    return y.permute(0, 3, 1, 2)


def weight_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """(B, C, H, W), (B, O, H, W) -> (O, C, 3, 3), in NHWC."""
    inputs, outputs = x.shape[1], dy.shape[1]
    kernels = workspace("kernels", x, 36, outputs, inputs)
    x, dy = nhwc(x), nhwc(dy)
    for images in chunks(x, outputs):
        tiles, tiles_of_dy = to_tiles(INPUT, x[images]), to_tiles(OUTPUT_TRANSPOSED, dy[images])
        beta = 1 if images.start else 0  # the first time there is nothing to add to
        kernels.baddbmm_(tiles_of_dy.permute(1, 2, 0), tiles.transpose(0, 1), beta=beta)
    dweight = x.new_empty(outputs, 3, 3, inputs)
    to_images(KERNEL_TRANSPOSED, kernels, dweight)
    return dweight.permute(0, 3, 1, 2)


class _Buffers(threading.local):
    """Memory that each thread keeps."""

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}
        self.sizes: dict[str, int] = {}  # most bytes asked for since `reset_sizes`


BUFFERS = _Buffers()


def workspace(name: str, like: Tensor, *shape: int) -> Tensor:
    """A tensor without content, in memory that is kept from call to call: its content lasts until
    the next call of that name. Allocated anew, it would leave holes between what is kept for the
    backward pass. A count of the memory of tensors leaves it out: see `kept_bytes`."""
    size = math.prod(shape)
    fake = isinstance(like, FakeTensor)
    buffer = None if fake else BUFFERS.of.get(name)
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False), _disable_current_modes():
            buffer = like.new_empty(size)
        if not fake:
            BUFFERS.of[name] = buffer
    BUFFERS.sizes[name] = max(4 * size, BUFFERS.sizes.get(name, 0))
    return buffer[:size].view(shape)


def is_counted(x: Tensor, weight: Tensor) -> bool:
    """Whether x has no content and winograd.c would compute with it: all that is needed then is
    the memory, in little time."""
    outputs, inputs = weight.shape[:2]
    fake = isinstance(x, FakeTensor)
    return fake and inputs % LANES == outputs % LANES == 0 and cpu_kernels() is not None


def count_workspaces(x: Tensor, outputs: int) -> None:
    """Count the workspaces of a convolution of x (B, C, H, W)."""
    _, inputs, height, width = x.shape
    images = next(chunks(x.permute(0, 2, 3, 1), outputs))
    tiles = (images.stop - images.start) * (height // TILE) * (width // TILE)
    sizes = {"tiles": tiles * inputs, "products": tiles * outputs, "kernels": inputs * outputs}
    for name, size in sizes.items():
        BUFFERS.sizes[name] = max(4 * 36 * size, BUFFERS.sizes.get(name, 0))


def reset_sizes() -> None:
    """Count in `kept_bytes` only what this thread computes from now on."""
    BUFFERS.sizes.clear()


def kept_bytes(growth: float) -> int:
    """The size of the workspaces if batches become `growth` times as large as they were."""

    def grown(name: str, size: int) -> int:
        most = 4 * CHUNK if name != "kernels" else 0  # kernels do not grow
        return max(size, min(int(size * growth), most))

    return sum(grown(name, size) for name, size in BUFFERS.sizes.items())


def nhwc(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def chunks(x: Tensor, outputs: int) -> Iterator[slice]:
    """So many images at a time that their tiles fit in the cache. Without content, the first ones
    stand for all: they need as much memory.

    Args:
        x: (B, H, W, C).
        outputs: channels of the result.
    """
    batch, height, width, channels = x.shape
    values = 36 * (height // TILE) * (width // TILE) * max(channels, outputs)
    number = math.ceil(batch * values / CHUNK)
    step = math.ceil(batch / number)
    end = 1 if isinstance(x, FakeTensor) else batch
    return (slice(first, first + step) for first in range(0, end, step))


class Transform(NamedTuple):
    """Between images (B, H, W, C) and their tiles, of six numbers on each axis.

    Args:
        number: in winograd.c.
        buffer: where `to_tiles` writes.
        line: transforms the first axis: (m, ...), to be written: (n, ...).
        window: pixels that belong to a tile, on each axis.
        step: pixels from one tile to the next.
    """

    number: int
    buffer: str
    line: Callable[[Tensor, Tensor], None]
    window: int
    step: int


def to_tiles(transform: Transform, images: Tensor) -> Tensor:
    """(B, H, W, C) -> (tiles, 36, C), in a workspace."""
    batch, height, width, channels = images.shape
    shape = batch, height // transform.step, width // transform.step, channels
    tiles = workspace(transform.buffer, images, math.prod(shape[:3]), 36, channels)
    if channels % LANES == 0 and (call := kernels_for(images)):
        call("transform", transform.number, images, tiles, None, None, *shape)
    else:
        margin = (transform.window - transform.step) // 2
        padded = F.pad(images, (0, 0, *4 * (margin,))) if margin else images
        rows = _windows(transform, padded, 1)
        half = rows.new_empty(6, *rows.shape[1:])
        transform.line(rows, half)
        numbers = tiles.view(*shape[:3], 6, 6, channels).permute(4, 3, 0, 1, 2, 5)
        transform.line(_windows(transform, half, 3), numbers)
    return tiles


def _windows(transform: Transform, x: Tensor, axis: int) -> Tensor:
    """A view of an axis as the pixels of each tile, which come first."""
    return x.unfold(axis, transform.window, transform.step).movedim(-1, 0)


def to_images(
    transform: Transform,
    tiles: Tensor,
    images: Tensor,
    bias: Tensor | None = None,
    plus: Tensor | None = None,
) -> None:
    """(36, tiles, C), as matrix products give them, to be written: (B, H, W, C).

    The content of the tiles may change.

    Args:
        bias: (C,), to be added to each pixel by `OUTPUT`.
        plus: as images, to be added.
    """
    batch, height, width, channels = images.shape
    step = transform.step
    shape = batch, height // step, width // step, channels
    if channels % LANES == 0 and (call := kernels_for(images)):
        call("transform", transform.number, tiles, images, bias, plus, *shape)
        return
    tiles = tiles.view(6, 6, *shape)
    if bias is not None:
        tiles[1, 1] += bias  # at the point 1, whose column of A^T is (1, 1, 1, 1)
    half = tiles.new_empty(step, 6, *shape)
    transform.line(tiles, half)
    pixels = images.view(batch, shape[1], step, shape[2], step, channels)
    transform.line(half.movedim(1, 0), pixels.permute(4, 2, 0, 1, 3, 5))
    if plus is not None:
        images += plus


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


INPUT = Transform(0, "tiles", input_transform, 6, 4)
KERNEL = Transform(1, "kernels", kernel_transform, 3, 3)
OUTPUT_TRANSPOSED = Transform(2, "products", output_transform_transposed, 4, 4)
OUTPUT = Transform(3, "tiles", output_transform, 4, 4)
KERNEL_TRANSPOSED = Transform(4, "tiles", kernel_transform_transposed, 3, 3)
