"""A picture file becomes a square of uint8 pixels: opened, converted, framed, scaled."""

import math
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ddpm.errors import InputError, shown

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # the well-trodden ones of Pillow's many parsers
MODES = {1: "L", 3: "RGB"}
FITS = ("crop", "pad", "resize")

Box = tuple[float, float, float, float]
ORIENTATION = 0x0112  # EXIF
TURNED = (5, 6, 7, 8)  # the orientations whose rows are shown as columns


class Unreadable(InputError):
    """A picture that cannot be read: names the file, its control characters escaped."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(
            f"data: cannot read image {str(path)!r} ({shown(reason, 200)}). Repair or remove it."
        )
        self.reason = reason


def open_image(path: Path) -> Image.Image:
    """A PNG, JPEG, WebP or BMP file, not decoded yet; `InputError` for others and huge ones."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would make us wait for ever
            raise Unreadable(path, "not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path, formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise Unreadable(path, "not a PNG, JPEG, WebP or BMP file") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Unreadable(path, str(error)) from error
    except Unreadable:
        raise
    except Exception as error:  # whatever a parser meets in a file that lies
        raise Unreadable(path, getattr(error, "strerror", None) or _said(error)) from error


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class ImageFiles:
    """Image files with labels, opened one by one and decoded when their pixels are asked for."""

    paths: Sequence[Path]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        yield from zip(map(open_image, self.paths), self.labels, strict=True)


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file as it is to be seen; `Unreadable` if it is none."""
    with open_image(path) as image:
        width, height = image.size
        orientation = 1
        with suppress(Exception):  # of damaged metadata
            orientation = image.getexif().get(ORIENTATION, 1)
    return (height, width) if orientation in TURNED else (width, height)


def convert(image: Image.Image, mode: str, background: int) -> Image.Image:
    """8-bit `L` or `RGB`: 16-bit grey is scaled, transparency laid over a grey background."""
    if image.mode.startswith("I"):  # Pillow itself would clip at 255
        image = Image.fromarray(
            ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        )
    elif image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (background, background, background, 255))
        canvas.alpha_composite(image.convert("RGBA"))
        canvas.info = image.info  # its orientation
        image = canvas
    return image.convert(mode)


def frame(
    width: int, height: int, size: int, fit: str, center_crop: int | None
) -> tuple[Box, tuple[int, int]]:
    """Which box of a picture (left, top, right, bottom) is scaled to which (width, height)."""
    if fit == "crop":
        side = min(width, height, center_crop or width)
        left, top = (width - side) // 2, (height - side) // 2
        return (left, top, left + side, top + side), (size, size)
    if fit == "resize":
        return (0, 0, width, height), (size, size)
    scale = min(1, size / max(width, height))
    return (0, 0, width, height), (max(1, round(width * scale)), max(1, round(height * scale)))


def square(
    image: Image.Image,
    *,
    channels: int,
    image_size: int,
    fit: str,
    center_crop: int | None,
    background: int,
    resample: Image.Resampling,
) -> np.ndarray:
    """uint8 (channels, image_size, image_size) of a picture, upright.

    `fit`: `crop` scales the centre square (its side: `center_crop` pixels, None: the shorter side),
    `resize` stretches the whole, `pad` shrinks what is too large, enlarges nothing and centres it.
    `background`: grey level 0..255 behind transparent and padded pixels.
    """
    width, height = image.size
    (left, top, right, bottom), target = frame(width, height, image_size, fit, center_crop)
    try:
        # A JPEG can be decoded at 1/2, 1/4 or 1/8; twice the final size loses nothing visible.
        zoom = 2 * max(target[0] / (right - left), target[1] / (bottom - top))
        image.draft(None, (math.ceil(width * zoom), math.ceil(height * zoom)))
        decoded = convert(image, MODES[channels], background)
    except Exception as error:  # whatever a decoder meets in a file that lies
        raise Unreadable(getattr(image, "filename", "?"), _said(error)) from error
    x, y = decoded.width / width, decoded.height / height
    box = left * x, top * y, min(right * x, decoded.width), min(bottom * y, decoded.height)
    scaled = decoded.resize(target, resample, box)
    with suppress(Exception):  # of damaged metadata
        ImageOps.exif_transpose(scaled, in_place=True)
    w, h = scaled.size
    x0, y0 = (image_size - w) // 2, (image_size - h) // 2
    pixels = np.full((image_size, image_size, channels), background, np.uint8)
    pixels[y0 : y0 + h, x0 : x0 + w] = np.asarray(scaled).reshape(h, w, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (C, H, W)
