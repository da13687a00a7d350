"""Pictures whose values are kept as they are: up to 16 bits or float32, 1 to 16 channels."""

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from ddpm.data.decode import FORMATS, Encoded, Unreadable, fault, frame, open_image
from ddpm.errors import InputError
from ddpm.limits.image_size import Size, sides

ARRAYS = (".npy", ".npz")
SUFFIXES = (".tif", ".tiff", *ARRAYS)  # beside those of 8-bit pictures
MAX_BYTES = 2**30  # of a picture in memory
_HEADERS = {  # by the version of the file
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LOW_BYTES = {"16B": "16L", "16L": "16B", "16N": "16B"}  # Pillow keeps the high bytes of colours


def read(file: Path | Encoded, channels: int) -> np.ndarray:
    """The values in a file, (H, W, C), of its own type.

    `.npy`, and `.npz` with one array, hold (H, W), (H, W, C) or (C, H, W): the last, if that fits
    `channels` and the second does not.

    Raises:
        Unreadable: it is no picture, or too large.
        OutOfReach: the machine cannot read it now.
    """
    path = file.path if isinstance(file, Encoded) else file
    if path.suffix.lower() not in ARRAYS:
        return _picture(file, path)
    try:
        with io.BytesIO(file.content) if isinstance(file, Encoded) else open(file, "rb") as opened:
            values = _array(opened, path)
    except InputError:
        raise
    except Exception as error:  # parsers raise anything on corrupt files
        raise fault(path, error) from error
    if values.dtype.kind not in "uif" or values.ndim not in (2, 3) or 0 in values.shape:
        raise Unreadable(path, f"an array of {values.dtype} and shape {values.shape}")
    if values.ndim == 2:
        return values[..., None]
    first = values.shape[0] == channels != values.shape[2]
    return values.transpose(1, 2, 0) if first else values


def _array(opened: BinaryIO, path: Path) -> np.ndarray:
    """The array of a .npy or .npz file, of which no more is read than its header and its size
    allow."""
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(opened) as archive:
            if len(archive.infolist()) != 1:
                raise Unreadable(path, f"holds {len(archive.infolist())} arrays, not one")
            member = archive.infolist()[0]
            if member.file_size > MAX_BYTES:
                raise Unreadable(path, f"holds {member.file_size:,} bytes")
            with archive.open(member) as inner:
                opened = io.BytesIO(inner.read(MAX_BYTES))
    version = np.lib.format.read_magic(opened)
    if version not in _HEADERS:
        raise Unreadable(path, f"an array file of version {version}")
    shape, _, dtype = _HEADERS[version](opened)
    size, start = math.prod(shape) * dtype.itemsize, opened.tell()
    if dtype.hasobject or size > MAX_BYTES:
        raise Unreadable(path, f"an array of {dtype} and shape {shape}")
    if opened.seek(0, io.SEEK_END) < start + size:
        raise Unreadable(path, "it is cut short")
    opened.seek(0)
    return np.load(opened)


def _picture(file: Path | Encoded, path: Path) -> np.ndarray:
    """(H, W, C) of a PNG, JPEG, WebP, BMP or TIFF file, upright."""
    with open_image(file, (*FORMATS, "TIFF")) as image:
        try:
            raw = image.tile[0].args if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
            raw = raw[0] if isinstance(raw, tuple) else raw
            if isinstance(raw, str) and ";16" in raw and not raw.startswith("I;"):
                values = _sixteen_bit_colours(file, image, raw, path)
            else:
                if image.mode in ("P", "1", "CMYK", "YCbCr"):
                    image = image.convert("L" if image.mode == "1" else "RGB")
                values = np.asarray(ImageOps.exif_transpose(image))
        except InputError:
            raise
        except Exception as error:  # decoders raise anything on corrupt files
            raise fault(path, error) from error
    return values.reshape(*values.shape[:2], -1)


def _sixteen_bit_colours(
    file: Path | Encoded, image: Image.Image, raw: str, path: Path
) -> np.ndarray:
    """(H, W, 3) of 16-bit RGB, in two passes: Pillow reads one byte of two."""
    mode, _, order = raw.partition(";")
    if mode != "RGB" or order not in _LOW_BYTES:
        raise Unreadable(path, f"16-bit colours of kind {raw}; save it as .npy")
    high = np.asarray(image).astype(np.uint16)
    with open_image(file, (*FORMATS, "TIFF")) as again:
        other = f"RGB;{_LOW_BYTES[order]}"
        again.tile = [  # type: ignore[attr-defined]
            tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
            for tile in again.tile  # type: ignore[attr-defined]
        ]
        return high * np.uint16(256) + np.asarray(again)


def pixels(
    file: Path | Encoded,
    *,
    shape: Sequence[int],
    dtype: str,
    value_range: Sequence[float],
    resize_mode: str,
    background: int,
) -> np.ndarray:
    """The values of a file, framed and scaled to `shape` (C, H, W). A picture of that size already
    is kept to the bit.

    Args:
        background: 0 to 255, from the lowest to the highest value: what pads.

    Raises:
        Unreadable, OutOfReach: as for `read`; or it has other channels or values.
    """
    path = file.path if isinstance(file, Encoded) else file
    values, (low, high) = read(file, shape[0]), value_range
    if values.shape[2] != shape[0]:
        raise Unreadable(path, f"it has {values.shape[2]} channels, and data.channels={shape[0]}")
    least, most = values.min(), values.max()
    if not low <= least <= most <= high:  # NaN as well
        raise Unreadable(
            path,
            f"its values go from {least:g} to {most:g}, and data.value_range={list(value_range)}",
        )
    if np.dtype(dtype).kind == "u" and values.dtype.kind == "f" and (values % 1).any():
        raise Unreadable(
            path, f"its values are no whole numbers, and data.value_range={list(value_range)}"
        )
    size: Size = list(shape[1:])
    scaled = _scaled(values, size, resize_mode)
    result = np.full(shape, low + (high - low) * background / 255, np.float64)
    (h, w), (tall, wide) = scaled.shape[:2], sides(size)
    top, left = (tall - h) // 2, (wide - w) // 2
    result[:, top : top + h, left : left + w] = scaled.transpose(2, 0, 1).clip(low, high)
    return (result.round() if np.dtype(dtype).kind == "u" else result).astype(dtype)


def _scaled(values: np.ndarray, size: Size, resize_mode: str) -> np.ndarray:
    """(H, W, C), each channel by Lanczos; untouched if nothing is to be done."""
    height, width = values.shape[:2]
    box, target = frame(width, height, size, resize_mode, None)
    if box == (0, 0, width, height) and target == (width, height):
        return values
    channels = np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)
    scaled = (Image.fromarray(c).resize(target, Image.Resampling.LANCZOS, box) for c in channels)
    return np.stack([np.asarray(channel) for channel in scaled], axis=-1)
