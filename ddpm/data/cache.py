"""The cache of decoded images: written by one process at a time, read through a memory map."""

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ddpm.errors import InputError
from ddpm.runner.safe_io import atomic, file_locks, kernel_locks, listing
from ddpm.runner.safe_io.listing import Unreachable

LARGE = 1 << 30  # bytes of images, above which they are not read through the memory map


class Rows(NamedTuple):
    """Images in a .npy file that cannot be mapped into memory.

    Args:
        shape: (N, C, H, W).
        offset: position of the first image in the file, in bytes.
        dtype: of the values.
    """

    shape: tuple[int, ...]
    offset: int
    dtype: np.dtype = np.dtype(np.uint8)


@dataclass(eq=False)
class ImageCache:
    """The files `<stem>.npy` (images), `.labels.npy`, `.skipped.json` (names of skipped files) and,
    for data sets with `holdout`, `.digests.npy`.

    Args:
        file: of the images.
        shape: (C, H, W) of an image.
        keeps_skipped: whether the third file exists.
        dtype: of the values.
    """

    file: Path
    shape: tuple[int, int, int]
    keeps_skipped: bool
    dtype: np.dtype

    def __post_init__(self) -> None:
        self.labels_file = self.file.with_suffix(".labels.npy")
        self.skipped_file = self.file.with_suffix(".skipped.json")
        self.digests_file = self.file.with_suffix(".digests.npy")

    def read(self) -> tuple[np.ndarray | Rows, np.ndarray, list[str]] | None:
        """The images, on disk, their labels, and the skipped files; None if missing or damaged.

        Raises:
            Unreachable: the files exist but cannot be read now.
        """
        skipped: list[str] = []
        try:
            images = open_images(self.file)
            labels = np.load(self.labels_file)
            if self.keeps_skipped:
                skipped = [str(name) for name in json.loads(self.skipped_file.read_text())]
        except OSError as error:
            if error.errno not in (None, *listing.MISSING, errno.EACCES, errno.EPERM):
                raise Unreachable(self.file, error, "read") from None
            return None
        except (ValueError, EOFError, TypeError):
            return None
        whole = images.shape == (len(labels), *self.shape) and images.dtype == self.dtype
        return (images, labels, skipped) if whole else None

    def build(self, write: Callable[[BinaryIO], tuple[list[int], list[str]]]) -> list[str]:
        """Write all files whole or not at all; the images appear last. Return the skipped files.

        Args:
            write: writes the images into a file, and returns their labels and the skipped files.
        """
        others = [self.labels_file, *([self.skipped_file] if self.keeps_skipped else [])]
        with atomic.replacing(*others, self.file) as (new_labels, *new_skipped, new_images):
            with open(new_images, "wb") as file:
                labels, skipped = write(file)
            with open(new_labels, "wb") as file:
                np.save(file, np.array(labels, dtype=np.int64))
            for path in new_skipped:
                path.write_text(json.dumps(skipped))
        return skipped

    def digests(self, images: np.ndarray | Rows) -> np.ndarray:
        """The first 64 bits of BLAKE2b of each image's bytes, uint64 (N,); kept in a file."""
        count = images.shape[0]
        try:
            kept = np.load(self.digests_file)
            if kept.dtype == np.uint64 and kept.shape == (count,):
                return kept
        except (OSError, ValueError, EOFError):
            pass
        digests = np.empty(count, np.uint64)
        for first in range(0, count, 1024):
            rows = self.read_rows(images, np.arange(first, min(first + 1024, count)))
            hashed = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
            digests[first : first + 1024] = np.frombuffer(hashed, ">u8")
        with (
            suppress(OSError),
            atomic.replacing(self.digests_file) as (new,),
            open(new, "wb") as file,
        ):
            np.save(file, digests)
        return digests

    @cached_property
    def _descriptor(self) -> BinaryIO:
        return open(self.file, "rb", buffering=0)

    def read_rows(self, images: np.ndarray | Rows, index: np.ndarray) -> np.ndarray:
        """`images[index]`. Large files are read without the memory map: its pages would
        count as memory of this process, which clusters limit.

        Raises:
            InputError: the file was truncated in the meantime.
        """
        if isinstance(images, np.ndarray):
            if images.nbytes <= LARGE:
                return images[index]
            offset = images.base.offset  # type: ignore[union-attr]
            images = Rows(images.shape, offset, images.dtype)
        chosen = np.empty((len(index), *images.shape[1:]), images.dtype)
        count = images.shape[0]
        for row, number in zip(chosen, index.tolist(), strict=True):
            if not -count <= number < count:
                raise IndexError(f"image {number} of {count}")
            position = images.offset + number % count * row.nbytes
            if not _read_into(row, self._descriptor.fileno(), position):
                raise InputError(f"data: {str(self.file)!r} has lost its end. Try again.")
        return chosen


def open_images(path: Path) -> np.ndarray | Rows:
    """The images of a .npy file, as a memory map if the file system supports it.

    Raises:
        OSError, ValueError, EOFError: the file is missing or damaged.
    """
    try:
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except OSError as error:
        if error.errno not in kernel_locks.UNSUPPORTED | {errno.EACCES}:
            raise
    with open(path, "rb") as file:  # 9p, and FUSE without a cache, have no memory maps
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not written by this program")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        offset, size = file.tell(), file.seek(0, os.SEEK_END)
    if dtype.hasobject or size < offset + math.prod(shape) * dtype.itemsize:
        raise ValueError("not written to its end")
    return Rows(shape, offset, dtype)


def _read_into(row: np.ndarray, descriptor: int, position: int) -> bool:
    """Fill an array from an open file; False if the file ends before."""
    rest = memoryview(row).cast("B")  # type: ignore[arg-type]
    while rest:
        try:
            count = os.preadv(descriptor, [rest], position)
        except (AttributeError, OSError) as error:  # not every system supports it
            if isinstance(error, OSError) and error.errno not in kernel_locks.UNSUPPORTED:
                raise
            data = os.pread(descriptor, len(rest), position)
            count = len(data)
            rest[:count] = data
        if not count:
            return False
        rest, position = rest[count:], position + count
    return True


def write_header(file: BinaryIO, count: int, shape: tuple[int, int, int], dtype: np.dtype) -> None:
    """Write the header of a .npy file of `count` images at its start. numpy pads it, so that it can
    be written again when the number is known."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count, *shape)}
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, header)


@contextmanager
def writing(folder: Path, name: str) -> Iterator[None]:
    """Lock a data set for writing into the folder; a crash frees the lock. Explains failures."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_locks.held(folder / f"{name}.lock", wait=True):
            yield
    except OSError as error:
        raise InputError(
            f"data: cannot write to {str(folder)!r} ({error.strerror or error}).\n"
            f"{_REMEDIES.get(error.errno or 0, 'Check the folder')}, or set data_dir=... "
            "(or the environment variable DDPM_DATA) to another folder."
        ) from error


_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some space there"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Make it writable"),
}


def leftovers(folder: Path, name: str, splits: Iterable[str]) -> list[Path]:
    """Temporary files of a data set in the cache; only the holder of its lock may remove them.

    Raises:
        Unreachable: the folder cannot be listed.
    """
    temporary = re.compile(  # named as now, or by earlier versions
        rf"\.?{re.escape(name)}-({'|'.join(map(re.escape, splits))})-\d+(x\d+)?-[0-9a-f]{{16}}"
        r"\.(npy|classes\.json|labels\.npy|digests\.npy|skipped\.json)(\.\d+)?\.tmp"
    )
    return [path for path in listing.paths(folder, "*.tmp") if temporary.fullmatch(path.name)]


def remove_leftovers(folder: Path, name: str, splits: Iterable[str]) -> None:
    """Remove temporary files of interrupted builds, unless a build is running now."""
    with (
        suppress(OSError, file_locks.Taken, Unreachable),
        file_locks.held(folder / f"{name}.lock"),
    ):
        for path in leftovers(folder, name, splits):
            path.unlink(missing_ok=True)
