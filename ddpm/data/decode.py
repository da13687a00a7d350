"""From an image file to a square of uint8 pixels: open, convert, crop or pad, scale."""

import errno
import math
import os
import resource
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from ddpm.errors import InputError, one_line, shown

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # the best-tested of Pillow's many parsers
MODES = {1: "L", 3: "RGB"}
FITS = ("crop", "pad", "resize")

# Decompressed text and colour profile of a PNG, in bytes. Pillow allows 1 MB, and valid images have
# more: prompts, edit histories, printer profiles. Without a limit 64 kB could become 64 MB.
MAX_TEXT = 64 * 1024**2
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT

# Errors of the file system that concern the file itself. All others concern the machine: too many
# open files, no memory, a failing disk or network.
_FILE_ERRORS = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EINVAL, errno.ENXIO),
)
_LEVELS = {"L;2": 3, "L;4": 15}  # highest grey level; Pillow scales it to 255
_opening = threading.Lock()  # guards the warning filters, which threads share

Box = tuple[float, float, float, float]
ORIENTATION = 0x0112  # EXIF
TURNED = (5, 6, 7, 8)  # orientations rotated by 90 degrees


class Unreadable(InputError):
    """A file that is no readable image; the message escapes control characters in its name."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(
            f"data: cannot read image {str(path)!r} ({shown(reason, 200)}). Repair or remove it."
        )
        self.path, self.reason = Path(path), reason


class OutOfReach(InputError):
    """A file that this machine cannot read now, whatever its content."""

    def __init__(self, path: str | Path, error: Exception) -> None:
        self.reason = getattr(error, "strerror", None) or str(error) or "no memory left"
        super().__init__(
            f"data: cannot read image {str(path)!r} ({shown(self.reason, 200)}), which is not the "
            f"image's fault. {_advice(getattr(error, 'errno', None) or errno.ENOMEM)}"
        )


def _advice(code: int) -> str:
    if code == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"This process may have {limit} files open at a time: raise that, by ulimit -n."
    return {
        errno.ENFILE: "All programs of this machine together have too many files open.",
        errno.ENOMEM: "Free some memory.",
        errno.EACCES: "Make it readable.",
        errno.EPERM: "Make it readable.",
    }.get(code, "Check the disk or the network, and try again.")


def open_image(path: Path) -> Image.Image:
    """A PNG, JPEG, WebP or BMP file, not decoded yet.

    Raises:
        Unreadable: it is no such file, or too large.
        OutOfReach: the machine cannot read it now.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
            raise Unreadable(path, "not a file")
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path, formats=FORMATS)
    except InputError:
        raise
    except Exception as error:  # parsers raise anything on corrupt files
        raise _fault(path, error) from error


def _fault(path: str | Path, error: Exception) -> InputError:
    """The exception to raise for an error in opening or decoding an image."""
    code = getattr(error, "errno", None)
    no_memory = isinstance(error, MemoryError) or "out of memory" in str(error)  # a decoder's
    if no_memory or (code is not None and code not in _FILE_ERRORS):
        return OutOfReach(path, error)
    if isinstance(error, Image.UnidentifiedImageError):
        return Unreadable(path, "not a PNG, JPEG, WebP or BMP file")
    if "MAX_TEXT_" in str(error):
        return Unreadable(path, f"more than {MAX_TEXT // 1024**2} MB of text or colour profile")
    return Unreadable(path, getattr(error, "strerror", None) or one_line(error))


@dataclass(frozen=True)
class ImageFiles:
    """Image files with labels, opened one by one and decoded when their pixels are needed."""

    paths: Sequence[Path]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.paths)

    def pairs(self) -> list[tuple[Path, int]]:
        """Paths and labels, without opening a file."""
        return list(zip(map(Path, self.paths), self.labels, strict=True))

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        yield from zip(map(open_image, self.paths), self.labels, strict=True)


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file as displayed; raises `Unreadable` if it is none."""
    with open_image(path) as image:
        width, height = image.size
        orientation = 1
        with suppress(Exception):  # damaged metadata
            orientation = image.getexif().get(ORIENTATION, 1)
    return (height, width) if orientation in TURNED else (width, height)


def convert(image: Image.Image, mode: str, background: int) -> Image.Image:
    """8-bit `L` or `RGB` as a viewer displays it: 16-bit grey is scaled; transparent pixels (alpha
    channel, palette or colour key) are blended with a grey background. Gamma and colour profiles
    are ignored, as Pillow does. The orientation stays in `info`."""
    image = _eight_bits(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (background, background, background, 255))
        canvas.alpha_composite(image.convert("RGBA"))
        canvas.info = image.info  # its orientation
        image = canvas
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits per channel, its metadata, and the right pixels transparent.

    A PNG without an alpha channel can define one transparent colour (tRNS), in the file's bit
    depth. Pillow compares it with converted pixels: shallow grey is scaled by then, 16-bit grey is
    clipped, and 16-bit colours have lost half their bits.
    """
    colour, raw = image.info.get("transparency"), _raw_mode(image)
    if raw in _LEVELS and isinstance(colour, int):
        highest = _LEVELS[raw]
        image.info["transparency"] = (colour & highest) * 255 // highest
    if image.mode.startswith("I"):
        deep = np.asarray(image).clip(0, 65535).astype(np.uint32)  # (H, W)
        pixels = ((deep + 128) // 257).astype(np.uint8)
        matches = deep == colour if isinstance(colour, int) else None
    elif raw == "RGB;16B" and isinstance(colour, tuple):
        low = Image.open(image.fp, formats=("PNG",))  # type: ignore[attr-defined]
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        lower_bytes = np.asarray(low).astype(np.uint32)  # (H, W, 3)
        pixels = np.asarray(image)
        matches = (pixels * np.uint32(256) + lower_bytes == colour).all(axis=-1)
    else:
        return image
    converted = Image.fromarray(pixels)
    if matches is not None:
        converted.putalpha(Image.fromarray(np.where(matches, 0, 255).astype(np.uint8)))
    converted.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return converted


def _raw_mode(image: Image.Image) -> str | None:
    """The pixel format in the file of an undecoded PNG, such as `L;4` or `RGB;16B`."""
    tiles = getattr(image, "tile", None)
    return tiles[0].args if tiles and isinstance(tiles[0].args, str) else None


def frame(
    width: int, height: int, size: int, resize_mode: str, center_crop: int | None
) -> tuple[Box, tuple[int, int]]:
    """The box (left, top, right, bottom) of an image, and the (width, height) to scale it to."""
    if resize_mode == "crop":
        side = min(width, height, center_crop or width)
        left, top = (width - side) // 2, (height - side) // 2
        return (left, top, left + side, top + side), (size, size)
    if resize_mode == "resize":
        return (0, 0, width, height), (size, size)
    scale = min(1, size / max(width, height))
    return (0, 0, width, height), (max(1, round(width * scale)), max(1, round(height * scale)))


def square(
    image: Image.Image,
    *,
    channels: int,
    image_size: int,
    resize_mode: str,
    center_crop: int | None,
    background: int,
    resample: Image.Resampling,
) -> np.ndarray:
    """uint8 (channels, image_size, image_size) of an image, upright.

    `resize_mode`: `crop` scales the centre square (of side `center_crop` pixels, None: the shorter
    side), `resize` stretches the whole image, `pad` centres it, shrunk if it is too large.
    `background`: grey level 0..255 of transparent pixels and padding.

    Raises:
        Unreadable, OutOfReach: as for `open_image`.
    """
    width, height = image.size
    (left, top, right, bottom), target = frame(width, height, image_size, resize_mode, center_crop)
    try:
        # A JPEG can be decoded at 1/2, 1/4 or 1/8; twice the final size loses nothing visible.
        zoom = 2 * max(target[0] / (right - left), target[1] / (bottom - top))
        image.draft(None, (math.ceil(width * zoom), math.ceil(height * zoom)))
        decoded = convert(image, MODES[channels], background)
        x, y = decoded.width / width, decoded.height / height
        box = left * x, top * y, min(right * x, decoded.width), min(bottom * y, decoded.height)
        scaled = decoded.resize(target, resample, box)
    except Exception as error:  # decoders raise anything on corrupt files
        raise _fault(getattr(image, "filename", None) or "?", error) from error
    with suppress(Exception):  # damaged metadata
        ImageOps.exif_transpose(scaled, in_place=True)
    w, h = scaled.size
    x0, y0 = (image_size - w) // 2, (image_size - h) // 2
    pixels = np.full((image_size, image_size, channels), background, np.uint8)
    pixels[y0 : y0 + h, x0 : x0 + w] = np.asarray(scaled).reshape(h, w, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (C, H, W)
