"""What every data set shares: pictures decoded once, to one size, into one memory map."""

import errno
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ddpm.data.decode import FITS, MODES, ImageFiles, Unreadable, open_image, square
from ddpm.errors import InputError, listed, shown
from ddpm.runner.safe_io import atomic, file_locks, listing

__all__ = ["ImageData", "ImageFiles", "PictureData", "check", "fetch", "is_int"]

LARGE = 1 << 30  # bytes, from which on images are not read by the memory map
ON_ERROR = ("stop", "skip")
NAMED = 20  # damaged pictures in a message
CACHE_VERSION = 2  # to be raised when the same settings give other pixels

logger = logging.getLogger(__name__)

# Keys that were called otherwise when caches and fingerprints first held them.
_FIRST_NAME = {"resize_mode": "fit"}


class ImageData(Dataset):
    """uint8 images (C, H, W) with labels, cached under `data_dir`/cache.

    A data set sets the class attributes and writes `files` and `images`; the rest is done here.
    Constructors check their arguments and touch no file: `prepare`, or the first use, does.
    `resize_mode` and `background` are explained in `decode.square`. `flip`: mirror half of the
    images, at random; the training loop does it. `conditional`: whether the network is told
    the labels.

    `notes`: messages about files that were left out, a line each.
    """

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train",)
    resample: ClassVar[Image.Resampling] = Image.Resampling.LANCZOS
    class_names: list[str] | None = None
    center_crop: int | None = None
    on_error: str = "stop"

    def __init__(
        self,
        *,
        data_dir: str | Path,
        split: str,
        channels: int,
        image_size: int,
        num_classes: int | None,
        resize_mode: str,
        background: int,
        flip: bool,
        conditional: bool = False,
    ) -> None:
        check("split", split, split in self.splits, ", ".join(self.splits))
        check("channels", channels, is_int(channels, 1) and channels in MODES, "1, 3")
        check("image_size", image_size, is_int(image_size, 1), "an integer above 0")
        countable = num_classes is None or is_int(num_classes, 1)
        check("num_classes", num_classes, countable, "null, an integer above 0")
        check("resize_mode", resize_mode, resize_mode in FITS, ", ".join(FITS))
        check("background", background, is_int(background, 0, 255), "an integer from 0 to 255")
        check("flip", flip, isinstance(flip, bool), "true, false")
        check("conditional", conditional, isinstance(conditional, bool), "true, false")
        self.data_dir = self.root = Path(os.path.expanduser(data_dir))
        self.split, self.channels, self.image_size = split, channels, image_size
        self.num_classes, self.resize_mode = num_classes, resize_mode
        self.background, self.flip = background, flip
        self.conditional = conditional
        self.notes: list[str] = []
        self.skipped: list[str] = []  # names of damaged pictures
        self._prepared = False

    def files(self, split: str) -> list[Path]:
        """The files under `root` that tell whether the images have changed."""
        raise NotImplementedError

    def images(self, split: str) -> Iterable[tuple[Image.Image, int]]:
        """Pictures and labels (0 where there are no classes); first fetches what is missing.

        Where the iterable has a length, the progress bar has an end. Of `ImageFiles`, which are
        opened one by one, all damaged ones are named.
        """
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        """All that the pixels depend on, besides the files."""
        keys = [
            "name",
            "split",
            "channels",
            "image_size",
            "resize_mode",
            "center_crop",
            "background",
        ]
        keys += ["on_error"] if self.on_error != "stop" else []  # which there was before that key
        return {_FIRST_NAME.get(key, key): getattr(self, key) for key in keys}

    @cached_property
    def sources(self) -> list[tuple[str, int, int]]:
        """Name, bytes and modification time (ns) of each of the files, which are fetched first."""
        paths = self.files(self.split)
        if not all(listing.stat(path, follow_links=False) for path in paths):
            with writing(self.data_dir / "cache", self.name):
                self.images(self.split)
            paths = self.files(self.split)
        for note in self.notes if _is_rank_zero() else []:
            logger.warning("%s: %s", shown(self.root, 200), note)
        stats = [_stat(path) for path in paths]
        names = map(self._name, paths)
        return [(n, stat.st_size, stat.st_mtime_ns) for n, stat in zip(names, stats, strict=True)]

    def _name(self, path: Path) -> str:
        """The path of a file below `root`."""
        return "/".join(path.parts[len(self.root.parts) :])

    @cached_property
    def _sources_digest(self) -> str:
        """SHA-256 of the settings and the files' names and sizes."""
        return digest([self.settings, [(name, size) for name, size, _ in self.sources]])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what the images are made from: equal for a copy of the data. Where pictures
        may be left out, it depends on which ones were, and they are prepared for it."""
        if self.on_error == "stop":
            return self._sources_digest
        self.prepare()
        return digest([self._sources_digest, self.skipped])

    @cached_property
    def cache_file(self) -> Path:
        """`<data_dir>/cache/<name>-<split>-<size>-<hash>.npy`, with labels in `.labels.npy`."""
        key = digest([CACHE_VERSION, self._sources_digest, [mtime for *_, mtime in self.sources]])
        stem = f"{self.name}-{self.split}-{self.image_size}-{key[:16]}"
        return self.data_dir / "cache" / f"{stem}.npy"

    def prepare(self) -> None:
        """Fetch and cache what is not there yet. Any number of processes may do so at once."""
        count = len(self.class_names) if self.class_names else None
        allowed = f"{count}, null" if count else "null"
        check("num_classes", self.num_classes, self.num_classes in (None, count), allowed)
        if self._read() is None:
            with writing(self.cache_file.parent, self.name):
                self._remove(self._leftovers())
                if self._read() is None:  # no other process was faster
                    self._build()
        elif not self._prepared:
            self._tidy()
        if not self._prepared:
            self._prepared = True
            if self.skipped and _is_rank_zero():
                logger.warning("%s", self._skipped_line())

    @property
    def _parts(self) -> dict[str, Path]:
        """The files of the cache, beside the images: labels, and which pictures were skipped."""
        endings = {"labels": ".labels.npy", "skipped": ".skipped.json"}
        if self.on_error == "stop":
            del endings["skipped"]
        return {part: self.cache_file.with_suffix(ending) for part, ending in endings.items()}

    def _read(self) -> "tuple[np.ndarray | _Rows, np.ndarray] | None":
        """The images, still on disk, and their labels; None where they are missing or damaged.

        Raises:
            Unreachable: they are there, and cannot be read now.
        """
        try:
            images = _mapped(self.cache_file)
            labels = np.load(self._parts["labels"])
            if "skipped" in self._parts:
                names = json.loads(self._parts["skipped"].read_text())
                self.skipped = [str(name) for name in names]
        except OSError as error:
            if error.errno not in (None, *listing.MISSING, errno.EACCES, errno.EPERM):
                raise listing.Unreachable(self.cache_file, error, "read") from None
            return None
        except (ValueError, EOFError, TypeError):
            return None
        shape = (len(labels), self.channels, self.image_size, self.image_size)
        return (images, labels) if images.shape == shape else None

    def _build(self) -> None:
        """Write all files under temporary names; the images take their own name last.

        Raises:
            InputError: pictures are damaged, and are not to be left out.
        """
        images, parts = self.cache_file, self._parts
        if images.exists():
            logger.warning("%s is damaged: building it again", images)
        with atomic.replacing(*parts.values(), images) as (*new, new_images):
            temporary = dict(zip(parts, new, strict=True))
            with open(new_images, "wb") as file:
                labels, damaged = self._write(file)
            if damaged and (self.on_error == "stop" or not labels):
                raise self._refusal(damaged, len(labels) + len(damaged))
            with open(temporary["labels"], "wb") as file:
                np.save(file, np.array(labels, dtype=np.int64))
            self.skipped = [self._name(error.path) for error in damaged]
            if "skipped" in temporary:
                temporary["skipped"].write_text(json.dumps(self.skipped))

    def _refusal(self, damaged: Sequence[Unreadable], count: int) -> InputError:
        """That pictures are damaged, naming the first of them, and what to do."""
        if len(damaged) == 1:
            wrong = str(damaged[0])
        else:
            names = [f"{self._name(e.path)!r} ({shown(e.reason, 80)})" for e in damaged]
            wrong = (
                f"data: cannot read {len(damaged):,} of {count:,} images in {str(self.root)!r}: "
                f"{listed(names, NAMED)}.\nRepair or remove them."
            )
        if self.on_error == "skip":
            return InputError(f"{wrong} None is left.")
        if not isinstance(self, PictureData):
            return InputError(wrong)
        return InputError(f"{wrong} Or leave out what is damaged: data.on_error=skip.")

    def _skipped_line(self) -> str:
        """How many pictures are left out, and the first of them."""
        count = len(self.skipped) + len(self)
        return (
            f"data.on_error=skip: left out {len(self.skipped):,} of {count:,} images, which cannot "
            f"be read: {listed([repr(name) for name in self.skipped], NAMED)}"
        )

    def _leftovers(self) -> list[Path]:
        """Temporary files in the cache: whoever has the lock of this data set may remove them, for
        nobody else writes them."""
        splits = "|".join(map(re.escape, self.splits))
        ours = re.compile(
            rf"\.?{re.escape(self.name)}-({splits})-\d+-[0-9a-f]{{16}}"
            r"\.(npy|labels\.npy|skipped\.json)(\.\d+)?\.tmp"  # as earlier versions named them, too
        )
        try:
            found = listing.paths(self.cache_file.parent, "*.tmp")
        except listing.Unreachable as error:
            logger.warning("%s What stopped builds have left in it stays.", error)
            return []
        return [path for path in found if ours.fullmatch(path.name)]

    def _tidy(self) -> None:
        """Remove what stopped builds have left, if none is at work now."""
        with suppress(OSError, file_locks.Taken):
            if self._leftovers():
                with file_locks.held(self.cache_file.with_name(f"{self.name}.lock")):
                    self._remove(self._leftovers())

    @staticmethod
    def _remove(paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    def _write(self, file: BinaryIO) -> tuple[list[int], list[Unreadable]]:
        """Stream the images as one .npy array; returns their labels, and what cannot be read.

        Plain writes: a full disk is an error to them, but a SIGBUS to a store into a memory map.
        The header comes again when the length is known; numpy leaves room in it for that.
        """
        shape = (self.channels, self.image_size, self.image_size)
        header = {"descr": "|u1", "fortran_order": False, "shape": (0, *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        labels: list[int] = []
        damaged: list[Unreadable] = []
        images = self.images(self.split)
        pairs = images.pairs() if isinstance(images, ImageFiles) else images
        bar = tqdm(pairs, f"caching {self.name}", unit=" images", disable=None, delay=1)
        items = iter(bar)
        with ThreadPoolExecutor() as pool:  # Pillow decodes and scales without the GIL
            while chunk := list(islice(items, 128)):
                pictures, chunk_labels = zip(*chunk, strict=True)
                made = list(pool.map(self._try_pixels, pictures))
                labels += [n for n, m in zip(chunk_labels, made, strict=True) if _is_image(m)]
                damaged += [m for m in made if not _is_image(m)]
                if damaged:
                    bar.set_postfix(damaged=len(damaged))
                if not damaged or self.on_error == "skip":  # else all that counts is their names
                    file.write(b"".join(m.tobytes() for m in made if _is_image(m)))
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (len(labels), *shape)})
        return labels, damaged

    def _try_pixels(self, picture: Image.Image | Path) -> np.ndarray | Unreadable:
        """uint8 (C, H, W) of a picture, or of a file; or what is wrong with it."""
        try:
            return self._pixels(open_image(picture) if isinstance(picture, Path) else picture)
        except Unreadable as error:
            return error

    def read(self, path: Path) -> Tensor:
        """Any picture file as it would be in this data set: uint8 (C, H, W).

        Raises:
            Unreadable: it is none, or damaged.
        """
        return torch.from_numpy(self._pixels(open_image(path)))

    def read_mask(self, path: Path) -> Tensor:
        """Where a picture file is white, framed like the images: bool (1, H, W).

        White are grey levels from 128; what is transparent or beside the picture is black.

        Raises:
            Unreadable: it is none, or damaged.
        """
        nearest = Image.Resampling.NEAREST
        pixels = self._pixels(open_image(path), channels=1, background=0, resample=nearest)
        return torch.from_numpy(pixels >= 128)

    def _pixels(self, picture: Image.Image, **changes: Any) -> np.ndarray:
        """uint8 (C, H, W); gives the picture's memory back. `changes`: of how it is framed."""
        keys = "channels", "image_size", "resize_mode", "center_crop", "background", "resample"
        with closing(picture):
            return square(picture, **{key: getattr(self, key) for key in keys} | changes)

    @cached_property
    def arrays(self) -> "tuple[np.ndarray | _Rows, np.ndarray]":
        """uint8 (N, C, H, W), a read-only memory map, and int64 (N,). Where the file system has no
        memory maps, only the shape and the place in the file of the former."""
        self.prepare()
        if (arrays := self._read()) is None:
            raise InputError(f"data: {str(self.cache_file)!r} was removed a moment ago. Try again.")
        return arrays

    def __len__(self) -> int:
        return len(self.arrays[1])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """uint8 (B, C, H, W) and int64 (B,): a whole batch at once.

        Raises:
            InputError: the file was cut off while it was read.
        """
        images, labels = self.arrays
        index = np.asarray(indices, dtype=np.int64)
        small = isinstance(images, np.ndarray) and images.nbytes <= LARGE
        chosen = images[index] if small else self._read_rows(images, index)
        return torch.from_numpy(chosen), torch.from_numpy(labels[index])

    @cached_property
    def _file(self) -> BinaryIO:
        return open(self.cache_file, "rb", buffering=0)

    def _read_rows(self, images: "np.ndarray | _Rows", index: np.ndarray) -> np.ndarray:
        """`images[index]` without the map. Read by it, the file would count as this process's
        memory, page by page, where a cluster limits that."""
        offset = images.offset if isinstance(images, _Rows) else images.base.offset
        chosen = np.empty((len(index), *images.shape[1:]), np.uint8)
        count = images.shape[0]
        for row, number in zip(chosen, index.tolist(), strict=True):
            if not -count <= number < count:
                raise IndexError(f"image {number} of {count}")
            place = offset + number % count * row.nbytes
            if not _read_into(row, self._file.fileno(), place):
                raise InputError(f"data: {str(self.cache_file)!r} has lost its end. Try again.")
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        """All but what is on disk: a worker process opens the files for itself."""
        left = ("arrays", "sources", "_file")
        return {key: v for key, v in self.__dict__.items() if key not in left}


class PictureData(ImageData):
    """A data set of picture files, whose `images` are `ImageFiles`.

    `on_error`: at pictures that cannot be read, `stop` names them all and ends the run, `skip`
    leaves them out and says how many.
    """

    def __init__(self, *, on_error: str = "stop", **arguments: Any) -> None:
        super().__init__(**arguments)
        check("on_error", on_error, on_error in ON_ERROR, ", ".join(ON_ERROR))
        self.on_error = on_error


class _Rows(NamedTuple):
    """Images in a .npy file that cannot be mapped into memory.

    Args:
        shape: (N, C, H, W), as uint8.
        offset: the bytes before the first one.
    """

    shape: tuple[int, ...]
    offset: int


def _mapped(path: Path) -> np.ndarray | _Rows:
    """The images of a .npy file, which stay on disk.

    Raises:
        OSError, ValueError, EOFError: there is no such file, or it is damaged.
    """
    try:
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except OSError as error:
        if error.errno not in file_locks.UNSUPPORTED | {errno.EACCES}:
            raise
    with open(path, "rb") as file:  # 9p, and FUSE that caches nothing, have no memory maps
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not written by this program")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        offset, size = file.tell(), file.seek(0, os.SEEK_END)
    if dtype != np.uint8 or size < offset + math.prod(shape):
        raise ValueError("not written to its end")
    return _Rows(shape, offset)


def _read_into(row: np.ndarray, file: int, place: int) -> bool:
    """Fill an array from an open file; false where the file ends before."""
    left = memoryview(row).cast("B")
    while left:
        try:
            count = os.preadv(file, [left], place)
        except (AttributeError, OSError) as error:  # not every system has it
            if isinstance(error, OSError) and error.errno not in file_locks.UNSUPPORTED:
                raise
            data = os.pread(file, len(left), place)
            count = len(data)
            left[:count] = data
        if not count:
            return False
        left, place = left[count:], place + count
    return True


def fetch(dataset: str, data_dir: Path, by_hand: str, **arguments: Any) -> Any:
    """`torchvision.datasets.<dataset>` in `data_dir`, downloaded where it is not there yet.

    Raises:
        InputError: no download, or damaged files; says what to get `by_hand`.
    """
    from torchvision import datasets

    try:
        return getattr(datasets, dataset)(data_dir, download=True, **arguments)
    except Exception as error:  # of urllib, gdown, tarfile, zipfile, the files' parsers
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        message = f"data: no {dataset} in {str(data_dir)!r} ({reason}).\n{by_hand}"
        raise InputError(message) from error


@contextmanager
def writing(folder: Path, name: str) -> Iterator[None]:
    """One process at a time (the kernel frees the lock of one that dies); explains what fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_locks.held(folder / f"{name}.lock", wait=True):
            yield
    except OSError as error:
        raise InputError(
            f"data: cannot write to {str(folder)!r} ({error.strerror or error}).\n"
            f"{_CURES.get(error.errno, 'See what is wrong with it')}, or set data_dir=... "
            "(or the environment variable DDPM_DATA) to another folder."
        ) from error


_CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some space there"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Make it writable"),
}


def _stat(path: Path) -> os.stat_result:
    """Of a file; of the link itself, where it leads nowhere: reading it says so."""
    found = listing.stat(path) or listing.stat(path, follow_links=False)
    if found is None:
        raise InputError(f"data: there is no file {str(path)!r} any more. Try again.")
    return found


def _is_image(made: np.ndarray | Unreadable) -> bool:
    return isinstance(made, np.ndarray)


def _is_rank_zero() -> bool:
    """Whether this process is the first of those that train together, which says what all see."""
    known = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not known or torch.distributed.get_rank() == 0


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def is_int(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def check(key: str, value: Any, valid: bool, allowed: str) -> None:
    if not valid:
        raise InputError(f"data.{key}={value}: not possible, allowed: {allowed}")
