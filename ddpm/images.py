"""The border between images and tensors: uint8 to [-1, 1] and back, grids, PNG and GIF files."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm.runner.safe_io import atomic


def normalize(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [-1, 1], any shape."""
    return images.float() / 127.5 - 1


def denormalize(x_0: Tensor) -> Tensor:
    """Float to uint8, the nearest grey level; what lies outside [-1, 1] is clipped. Any shape."""
    return ((x_0.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def make_grid(images: Tensor, columns: int | None = None) -> Tensor:
    """uint8 (N, C, H, W) to one picture (C, H', W') with thin grey lines; about as many rows.

    As `torchvision.utils.make_grid`, the import of which would take as long as that of torch.
    """
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    channels, height, width = images.shape[1:]
    line = 0 if len(images) == 1 else max(1, width // 32)
    grid = images.new_full(
        (channels, rows * (height + line) + line, columns * (width + line) + line), 128
    )
    for n, image in enumerate(images):
        top = line + n // columns * (height + line)
        left = line + n % columns * (width + line)
        grid[:, top : top + height, left : left + width] = image
    return grid


def enlarge(picture: Tensor, width: int = 512) -> Tensor:
    """uint8 (C, H, W), each pixel repeated until the picture is about `width` wide, to be seen."""
    scale = max(1, round(width / picture.shape[-1]))
    return picture.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)


def save_png(image: Tensor, path: str | Path, scale: int = 1) -> None:
    """Write uint8 (C, H, W), each pixel `scale` times as large; never half a file."""
    with _replacing(path) as (temporary,):
        _picture(image, scale).save(temporary, format="PNG")


def load_png(path: str | Path) -> Tensor:
    """uint8 (C, H, W) of a picture that `save_png` wrote."""
    with Image.open(path, formats=["PNG"]) as picture:
        pixels = np.array(picture)  # (H, W) or (H, W, 3)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()


def is_whole(path: str | Path) -> bool:
    """Whether a picture is there and can be read."""
    try:
        with Image.open(path, formats=["PNG", "GIF"]) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def save_gif(
    frames: Iterable[Tensor],
    path: str | Path,
    duration_ms: int = 50,
    hold_ms: int = 2000,
    scale: int = 1,
) -> None:
    """Write uint8 (C, H, W) frames, each shown `duration_ms`, the last one `hold_ms`, in a loop."""
    first, *rest = [_picture(frame, scale) for frame in frames]
    durations = [duration_ms] * len(rest) + [hold_ms]
    with _replacing(path) as (temporary,):
        first.save(
            temporary, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0
        )


def _picture(image: Tensor, scale: int) -> Image.Image:
    """uint8 (C, H, W) as a grey or colour picture, enlarged without smoothing."""
    assert image.dtype == torch.uint8, f"uint8 expected, got {image.dtype}"
    channels, height, width = image.shape
    assert channels in (1, 3), f"1 or 3 channels expected, got {channels}"
    pixels = image.cpu().permute(1, 2, 0).contiguous().numpy()  # (H, W, C)
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)


def _replacing(path: str | Path) -> AbstractContextManager[list[Path]]:
    """`atomic.replacing` for a file whose folder may not exist yet."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return atomic.replacing(Path(path), durable=True)
