"""From an image file to uint8 pixels of one size: open, convert, crop or pad, scale."""

import errno
import io
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
from ddpm.limits.image_size import Size, sides

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # the best-tested of Pillow's many parsers
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by channels; alpha is one where it is asked for

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


@dataclass(frozen=True)
class Encoded:
    """The bytes of an image file that lies in an archive or a table.

    Args:
        path: names it in messages: `<folder>/shard.tar/000.png`.
    """

    path: Path
    content: bytes


def open_image(file: Path | Encoded, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """A PNG, JPEG, WebP or BMP file, not decoded yet.

    Raises:
        Unreadable: it is no such file, or too large.
        OutOfReach: the machine cannot read it now.
    """
    path = file.path if isinstance(file, Encoded) else file
    try:
        if isinstance(file, Path) and not stat.S_ISREG(os.stat(file).st_mode):
            raise Unreadable(path, "not a file")  # a pipe would block
        opened = io.BytesIO(file.content) if isinstance(file, Encoded) else file
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(opened, formats=formats)
        if isinstance(file, Encoded):
            image.filename = str(path)
        return image
    except InputError:
        raise
    except Exception as error:  # parsers raise anything on corrupt files
        raise fault(path, error) from error


def fault(path: str | Path, error: Exception) -> InputError:
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
        return (height, width) if is_turned(image) else (width, height)


def is_turned(image: Image.Image) -> bool:
    """Whether a viewer turns the image by 90 degrees."""
    with suppress(Exception):  # damaged metadata
        return image.getexif().get(ORIENTATION, 1) in TURNED
    return False


def convert(image: Image.Image, mode: str, background: int) -> Image.Image:
    """8-bit `L` or `RGB` as a viewer displays it: 16-bit grey is scaled; transparent pixels (alpha
    channel, palette or colour key) are blended with a grey background. Gamma and colour profiles
    are ignored, as Pillow does. The orientation stays in `info`."""
    image = _eight_bits(image)
    if image.mode == "La":
        image = image.convert("LA")
    if mode in ("LA", "RGBA"):  # alpha is a channel like the others
        return image.convert(mode)
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
    width: int, height: int, size: Size, resize_mode: str, center_crop: int | None
) -> tuple[Box, tuple[int, int]]:
    """The box (left, top, right, bottom) of an image, and the (width, height) to scale it to."""
    high, wide = sides(size)
    if resize_mode == "crop":
        # The largest centred part with the proportions of `size`; for a square: the shorter side.
        scale = min(width / wide, height / high, (center_crop or width) / wide)
        w, h = min(width, round(scale * wide)), min(height, round(scale * high))
        left, top = (width - w) // 2, (height - h) // 2
        return (left, top, left + w, top + h), (wide, high)
    if resize_mode == "resize":
        return (0, 0, width, height), (wide, high)
    scale = min(1, wide / width, high / height)
    return (0, 0, width, height), (max(1, round(width * scale)), max(1, round(height * scale)))


def square(
    image: Image.Image,
    *,
    channels: int,
    image_size: Size,
    resize_mode: str,
    center_crop: int | None,
    background: int,
    resample: Image.Resampling,
) -> np.ndarray:
    """uint8 (channels, height, width) of an image, upright; `image_size`: see `sides`.

    `resize_mode`: `crop` scales the centre (of a width of `center_crop` pixels, None: the largest
    part with the proportions of `image_size`), `resize` stretches the whole image, `pad` centres
    it, shrunk if it is too large. `background`: grey level 0..255 of transparent pixels and
    padding.

    Raises:
        Unreadable, OutOfReach: as for `open_image`.
    """
    width, height = image.size
    high, wide = sides(image_size)
    try:
        drafts = image.format in ("JPEG", "MPO")
        decoded = None if drafts else convert(image, MODES[channels], background)
        size = (wide, high) if high != wide and is_turned(image) else (high, wide)
        (left, top, right, bottom), target = frame(width, height, size, resize_mode, center_crop)
        if decoded is None:
            # A JPEG can be decoded at 1/2, 1/4 or 1/8; twice the final size loses nothing visible.
            zoom = 2 * max(target[0] / (right - left), target[1] / (bottom - top))
            image.draft(None, (math.ceil(width * zoom), math.ceil(height * zoom)))
            decoded = convert(image, MODES[channels], background)
        x, y = decoded.width / width, decoded.height / height
        box = left * x, top * y, min(right * x, decoded.width), min(bottom * y, decoded.height)
        scaled = decoded.resize(target, resample, box)
    except Exception as error:  # decoders raise anything on corrupt files
        raise fault(getattr(image, "filename", None) or "?", error) from error
    with suppress(Exception):  # damaged metadata
        ImageOps.exif_transpose(scaled, in_place=True)
    w, h = scaled.size
    x0, y0 = (wide - w) // 2, (high - h) // 2
    pixels = np.full((high, wide, channels), background, np.uint8)
    pixels[y0 : y0 + h, x0 : x0 + w] = np.asarray(scaled).reshape(h, w, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (C, H, W)
