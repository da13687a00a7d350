"""Images as tensors: their values <-> [-1, 1], grids, PNG, GIF and .npy files."""

import io
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm.runner.safe_io import atomic


class Codec(Protocol):
    """Images <-> the x_0 that the process adds noise to."""

    dtype: torch.dtype  # of the images

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, x_0: Tensor) -> Tensor: ...

    def show(self, images: Tensor) -> Tensor:
        """The images for a screen: (N, C, H, W) -> uint8 (N, 1 or 3, H, W')."""
        ...


class Pixels:
    """Grey levels 0..255, scaled to [-1, 1]; any shape."""

    dtype = torch.uint8

    def show(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W); other than 1 or 3 channels side by side."""
        return side_by_side(images)

    def encode(self, images: Tensor) -> Tensor:
        """uint8 to float32."""
        return images.float() / 127.5 - 1

    def decode(self, x_0: Tensor) -> Tensor:
        """Float to the nearest grey level, uint8; values outside [-1, 1] are clipped."""
        return ((x_0.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class Values:
    """The values `low` to `high`, scaled to [-1, 1]; any shape.

    Args:
        dtype: of the images: uint16 (values are rounded) or float32.
    """

    def __init__(self, low: float, high: float, dtype: torch.dtype) -> None:
        self.low, self.high, self.dtype = low, high, dtype

    def encode(self, images: Tensor) -> Tensor:
        """To float32."""
        return (images.float() - self.low) * (2 / (self.high - self.low)) - 1

    def decode(self, x_0: Tensor) -> Tensor:
        """Float to the nearest value; those outside of [-1, 1] are clipped."""
        unit = (x_0.float().clamp(-1, 1) + 1) / 2
        values = (self.low + unit * (self.high - self.low)).clamp(self.low, self.high)
        return (
            values.to(self.dtype) if self.dtype == torch.float32 else values.round().to(self.dtype)
        )

    def show(self, images: Tensor) -> Tensor:
        """uint8, black at `low` and white at `high`; other than 1 or 3 channels side by side."""
        return side_by_side(Pixels().decode(self.encode(images)))


def codec_of(value_range: Sequence[float] | None) -> Codec:
    """The codec of a value range, with the dtype that holds its values: uint8 for None and
    [0, 255], uint16 for whole numbers from 0 to at most 65535 (above 255), else float32."""
    if value_range is None or list(value_range) == [0, 255]:
        return Pixels()
    low, high = value_range
    whole = float(low).is_integer() and float(high).is_integer()
    deep = whole and low >= 0 and 255 < high <= 65535
    return Values(low, high, torch.uint16 if deep else torch.float32)


def side_by_side(images: Tensor) -> Tensor:
    """(N, C, H, W); other than 1 or 3 channels as grey images side by side: (N, 1, H, C W)."""
    if images.shape[1] in (1, 3):
        return images
    return torch.cat(images.unbind(1), dim=-1)[:, None]


def suffix(channels: int, dtype: torch.dtype) -> str:
    """The ending of the files of such images: .png for whole numbers and up to 4 channels."""
    return ".png" if channels <= 4 and dtype != torch.float32 else ".npy"


def save_image(image: Tensor, path: str | Path) -> None:
    """Write (C, H, W) atomically, every value as it is: as PNG of 8 or 16 bits, or, if the path
    ends with .npy, as an array (H, W, C), or (H, W) of one channel."""
    if image.dtype == torch.uint8 and image.shape[0] in (1, 3) and Path(path).suffix == ".png":
        save_png(image, path)
        return
    array = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())
    content = io.BytesIO()
    if Path(path).suffix == ".npy":
        np.save(content, array[..., 0] if array.shape[2] == 1 else array)
    else:
        content.write(_png(array))
    with _replacing(path) as (temporary,):
        Path(temporary).write_bytes(content.getvalue())


def load_image(path: str | Path) -> Tensor:
    """(C, H, W) of a file written by `save_image`."""
    if Path(path).suffix == ".npy":
        array = np.load(path)
        return torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1).contiguous()
    with open(path, "rb") as file:
        head = file.read(26)
    if head[24] != 16:
        return load_png(path)
    return torch.from_numpy(_unpng(Path(path).read_bytes())).permute(2, 0, 1).contiguous()


_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels to PNG's colour types
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _png(array: np.ndarray) -> bytes:
    """uint8 or uint16 (H, W, C) as a PNG. Pillow writes 16 bits for grey alone."""
    height, width, channels = array.shape
    lines = array.astype(f">u{array.itemsize}").reshape(height, -1).view(np.uint8)
    raw = np.pad(lines, ((0, 0), (1, 0))).tobytes()  # each line begins with filter 0
    header = struct.pack(">IIBBBBB", width, height, 8 * array.itemsize, _COLOURS[channels], 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(raw, 6), b"IEND": b""}
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def _unpng(content: bytes) -> np.ndarray:
    """uint16 (H, W, C) of a 16-bit PNG that `_png` has written."""
    width, height, _, colour = struct.unpack(">IIBB", content[16:26])
    channels = next(c for c, kind in _COLOURS.items() if kind == colour)
    (size,) = struct.unpack(">I", content[33:37])
    raw = np.frombuffer(zlib.decompress(content[41 : 41 + size]), np.uint8).reshape(height, -1)
    lines = np.ascontiguousarray(raw[:, 1:]).view(">u2")
    return lines.reshape(height, width, channels).astype(np.uint16)


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
    """The bytes that `save_png` writes for uint8 (C, H, W)."""
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
        if Path(path).suffix == ".npy":
            return np.load(path).size > 0
        with Image.open(path, formats=["PNG", "GIF"]) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, EOFError):
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
        return png_bytes(enlarge(self.grid()))
