"""Images as tensors: uint8 <-> [-1, 1], grids, PNG and GIF files."""

import io
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm.runner.safe_io import atomic


class Codec(Protocol):
    """uint8 images <-> the x_0 that the process adds noise to."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, x_0: Tensor) -> Tensor: ...


class Pixels:
    """Grey levels 0..255, scaled to [-1, 1]; any shape."""

    def encode(self, images: Tensor) -> Tensor:
        """uint8 to float32."""
        return images.float() / 127.5 - 1

    def decode(self, x_0: Tensor) -> Tensor:
        """Float to the nearest grey level, uint8; values outside [-1, 1] are clipped."""
        return ((x_0.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def make_grid(images: Tensor, columns: int | None = None) -> Tensor:
    """uint8 (N, C, H, W) to one image (C, H', W') with thin grey lines; by default about square.

    Like `torchvision.utils.make_grid`, whose import would take as long as that of torch.
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
    """uint8 (C, H, W), each pixel repeated so that the image is about `width` wide."""
    scale = max(1, round(width / picture.shape[-1]))
    return picture.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)


def save_png(image: Tensor, path: str | Path, scale: int = 1) -> None:
    """Write uint8 (C, H, W) atomically, each pixel `scale` times as large."""
    with _replacing(path) as (temporary,):
        _picture(image, scale).save(temporary, format="PNG")


def png_bytes(image: Tensor) -> bytes:
    """What `save_png` writes of uint8 (C, H, W)."""
    content = io.BytesIO()
    _picture(image, 1).save(content, format="PNG")
    return content.getvalue()


def load_png(path: str | Path) -> Tensor:
    """uint8 (C, H, W) of a file written by `save_png`."""
    with Image.open(path, formats=["PNG"]) as picture:
        pixels = np.array(picture)  # (H, W) or (H, W, 3)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()


def is_whole(path: str | Path) -> bool:
    """Whether the file exists and can be decoded to its end."""
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
    """Write uint8 (C, H, W) frames, each for `duration_ms`, the last for `hold_ms`, in a loop."""
    first, *rest = [_picture(frame, scale) for frame in frames]
    durations = [duration_ms] * len(rest) + [hold_ms]
    with _replacing(path) as (temporary,):
        first.save(
            temporary, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0
        )


def _picture(image: Tensor, scale: int) -> Image.Image:
    """uint8 (C, H, W) as a grey or colour image, enlarged without smoothing."""
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


class Images(Tensor):
    """uint8 (N, C, H, W), or one image (C, H, W), that notebooks show as a picture.

    What is computed from it is a plain tensor, except for its slices.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    def __getitem__(self, index: Any) -> "Images":
        return self.as_subclass(Tensor)[index].as_subclass(Images)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a plain tensor, which `torch.load` reads with `weights_only=True`."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def grid(self) -> Tensor:
        """One image, uint8 (C, H', W'), see `make_grid`."""
        images = self.as_subclass(Tensor)
        return images if images.dim() == 3 else make_grid(images)

    def save(self, path: str | Path) -> None:
        """Write the grid as a PNG file about 512 pixels wide."""
        save_png(enlarge(self.grid()), path)

    def _repr_png_(self) -> bytes | None:
        """The same for IPython; None if these are no images, which it then shows as text."""
        if self.dtype != torch.uint8 or self.dim() not in (3, 4) or self.shape[-3] not in (1, 3):
            return None
        file = io.BytesIO()
        _picture(enlarge(self.grid()), scale=1).save(file, format="PNG")
        return file.getvalue()
