"""What every data set shares: images decoded once, to one size, into one cache."""

import copy
import hashlib
import http.client
import json
import logging
import os
import urllib.error
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ddpm.data.cache import (
    ImageCache,
    Rows,
    leftovers,
    remove_leftovers,
    write_header,
    writing,
)
from ddpm.data.decode import Encoded, ImageFiles, Unreadable, open_image, square
from ddpm.errors import InputError, causes, listed, shown
from ddpm.limits.image_size import Size, sides, text
from ddpm.limits.parts import check_limits
from ddpm.runner.safe_io import listing

__all__ = ["ImageData", "ImageFiles", "PictureData", "check", "fetch"]

MAX_NAMED = 20  # damaged files in a message
CACHE_VERSION = 2  # to be raised when the same settings give other pixels

logger = logging.getLogger(__name__)

_OPEN = ("arrays", "rows", "sources", "cache")  # not to be pickled
# Keys that had another name when caches and fingerprints were first written.
_FIRST_NAME = {"resize_mode": "fit"}


class ImageData(Dataset):
    """Images (C, H, W) with labels, cached under `data_dir`/cache; uint8, or of another `dtype`.

    Subclasses set the class attributes and define `files` and `images`. Constructors check their
    arguments and touch no file; `prepare`, or the first use, does. `resize_mode` and `background`
    are explained in `decode.square`. `flip`: mirror half of the images at random; the training loop
    does it. `conditional`: whether the network is trained on the labels. `data_dir`: None: that of
    the environment variable DDPM_DATA, or `data`.

    `notes`: messages about files that were left out, a line each.
    """

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train",)
    held_out_split: ClassVar[str | None] = None  # that training on `train` leaves out
    resample: ClassVar[Image.Resampling] = Image.Resampling.LANCZOS
    center_crop: int | None = None
    on_error: str = "stop"
    dtype: str = "uint8"  # of the values
    value_range: tuple[float, float] | None = None  # of other dtypes: what -1 and 1 stand for
    allowed_channels: ClassVar[Sequence[int]] = (1, 3)
    classes_in: ClassVar[str] = ""  # where they are looked for, behind "no classes were found"

    def __init__(
        self,
        *,
        data_dir: str | Path | None = None,
        split: str = "train",
        channels: int = 3,
        image_size: Size,
        num_classes: int | None = None,
        resize_mode: str,
        background: int = 0,
        flip: bool = False,
        conditional: bool = False,
    ) -> None:
        check("split", split, split in self.splits, ", ".join(self.splits))
        allowed = ", ".join(map(str, self.allowed_channels))
        known = type(channels) is int and channels in self.allowed_channels
        check("channels", channels, known, allowed)
        check_limits("data", image_size=image_size, num_classes=num_classes, flip=flip)
        check_limits("data", resize_mode=resize_mode, background=background)
        check_limits("data", conditional=conditional)
        data_dir = data_dir or os.environ.get("DDPM_DATA", "data")
        self.data_dir = self.root = Path(os.path.expanduser(data_dir))
        self.split = self.source_split = split  # what it holds, and whose files it reads
        height, width = sides(image_size)
        self.shape = (channels, height, width)
        self.channels = channels
        self.image_size: Size = height if height == width else [height, width]
        self.num_classes, self.resize_mode = num_classes, resize_mode
        self.background, self.flip = background, flip
        self.conditional = conditional
        self.notes: list[str] = []
        self.skipped: list[str] = []  # names of damaged files
        self._prepared = False

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of the labels; None: no classes."""
        return None

    def held_out(self) -> "ImageData | None":
        """The images that training on these leaves out, read as these are; None: there are none."""
        if self.split != "train" or self.held_out_split is None:
            return None
        return self.with_split(self.held_out_split)

    def with_split(self, split: str) -> Self:
        """The same data set with another split."""
        other = copy.copy(self)
        for kind in type(self).__mro__:
            for name, attribute in vars(kind).items():
                if isinstance(attribute, cached_property):
                    other.__dict__.pop(name, None)
        other.split = other.source_split = split
        other.notes, other.skipped, other._prepared = [], [], False
        return other

    def files(self, split: str) -> list[Path]:
        """The files below `root` whose sizes and times show whether the images have changed."""
        raise NotImplementedError

    def images(self, split: str) -> Iterable[tuple[Image.Image | Encoded, int]]:
        """Images and labels (0 without classes); downloads missing files first.

        An iterable with a length gets a progress bar with an end. With `ImageFiles`, which are
        opened one by one, an error names all damaged files.
        """
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the pixels depend on, apart from the files."""
        keys = [
            "name",
            "split",
            "channels",
            "image_size",
            "resize_mode",
            "center_crop",
            "background",
        ]
        keys += ["on_error"] if self.on_error != "stop" else []  # as in caches older than the key
        values = {_FIRST_NAME.get(key, key): getattr(self, key) for key in keys}
        return values | {"split": self.source_split}

    @cached_property
    def sources(self) -> list[tuple[str, int, int]]:
        """Name, bytes and modification time (ns) of each of the files; downloads them first."""
        paths = self.files(self.source_split)
        if not all(listing.stat(path, follow_links=False) for path in paths):
            with writing(self.data_dir / "cache", self.name):
                self.images(self.source_split)
            paths = self.files(self.source_split)
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
        """SHA-256 of the settings and of the files' names and sizes."""
        return digest([self.settings, [(name, size) for name, size, _ in self.sources]])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the settings and files; a copy of the data has the same. If damaged files may
        be skipped, it includes which ones were, and prepares the data to find out."""
        if self.on_error == "stop":
            return self._sources_digest
        self.prepare()
        return digest([self._sources_digest, self.skipped])

    @cached_property
    def cache_file(self) -> Path:
        """`<data_dir>/cache/<name>-<split>-<size>-<hash>.npy`."""
        key = digest([CACHE_VERSION, self._sources_digest, [mtime for *_, mtime in self.sources]])
        stem = f"{self.name}-{self.source_split}-{text(self.image_size)}-{key[:16]}"
        return self.data_dir / "cache" / f"{stem}.npy"

    @cached_property
    def cache(self) -> ImageCache:
        keeps_skipped = self.on_error != "stop"
        return ImageCache(self.cache_file, self.shape, keeps_skipped, np.dtype(self.dtype))

    def prepare(self) -> None:
        """Download and cache the images if necessary; safe in several processes at once."""
        count = len(self.class_names) if self.class_names else None
        allowed = f"{count}, null" if count else f"null, as no classes were found{self.classes_in}"
        check("num_classes", self.num_classes, self.num_classes in (None, count), allowed)
        folder = self.cache_file.parent
        if self._read() is None:
            with writing(folder, self.name):
                for path in self._leftovers():
                    path.unlink(missing_ok=True)
                if self._read() is None:  # no other process was faster
                    self._build()
        elif not self._prepared and self._leftovers():
            remove_leftovers(folder, self.name, self.splits)
        if not self._prepared:
            self._prepared = True
            if self.skipped and _is_rank_zero():
                logger.warning("%s", self._skipped_line())

    def _read(self) -> tuple[np.ndarray | Rows, np.ndarray] | None:
        """The cached images and labels; None if missing or damaged. Sets `skipped`."""
        cached = self.cache.read()
        if cached is None:
            return None
        images, labels, self.skipped = cached
        return images, labels

    def _leftovers(self) -> list[Path]:
        """Temporary files of interrupted builds."""
        try:
            return leftovers(self.cache_file.parent, self.name, self.splits)
        except listing.Unreachable as error:
            logger.warning("%s Files of interrupted builds in it are not removed.", error)
            return []

    def _build(self) -> None:
        """Write the cache."""
        if self.cache_file.exists():
            logger.warning("%s is damaged: building it again", self.cache_file)
        self.skipped = self.cache.build(self._write)

    def _write(self, file: BinaryIO) -> tuple[list[int], list[str]]:
        """Stream the images as one .npy array; return their labels, and the skipped files.

        By plain writes: a full disk raises an error there, but SIGBUS in a memory map.

        Raises:
            InputError: files are damaged and may not be skipped, or none is left.
        """
        write_header(file, 0, self.cache.shape, self.cache.dtype)
        labels: list[int] = []
        damaged: list[Unreadable] = []
        images = self.images(self.source_split)
        pairs = images.pairs() if isinstance(images, ImageFiles) else images
        bar = tqdm(pairs, f"caching {self.name}", unit=" images", disable=None, delay=1)
        items = iter(bar)
        with ThreadPoolExecutor() as pool:  # Pillow decodes and scales without the GIL
            while chunk := list(islice(items, 128)):
                pictures, chunk_labels = zip(*chunk, strict=True)
                for label, result in zip(
                    chunk_labels, pool.map(self._try_pixels, pictures), strict=True
                ):
                    if isinstance(result, Unreadable):
                        damaged.append(result)
                        continue
                    labels.append(label)
                    if not damaged or self.on_error == "skip":  # else only their names matter
                        file.write(result.tobytes())
                if damaged:
                    bar.set_postfix(damaged=len(damaged))
        if damaged and (self.on_error == "stop" or not labels):
            raise self._refusal(damaged, len(labels) + len(damaged))
        write_header(file, len(labels), self.cache.shape, self.cache.dtype)
        return labels, [self._name(error.path) for error in damaged]

    def _refusal(self, damaged: Sequence[Unreadable], count: int) -> InputError:
        """The error that names the first damaged files and the remedy."""
        if len(damaged) == 1:
            message = str(damaged[0])
        else:
            names = [f"{self._name(e.path)!r} ({shown(e.reason, 80)})" for e in damaged]
            message = (
                f"data: cannot read {len(damaged):,} of {count:,} images in {str(self.root)!r}: "
                f"{listed(names, MAX_NAMED)}.\nRepair or remove them."
            )
        if self.on_error == "skip":
            return InputError(f"{message} None is left.")
        if len(damaged) == count or not isinstance(self, PictureData):
            return InputError(message)
        return InputError(f"{message} Or skip damaged images: data.on_error=skip.")

    def _skipped_line(self) -> str:
        """The number of skipped files, and the first of them."""
        count = len(self.skipped) + len(self.arrays[1])
        return (
            f"data.on_error=skip: left out {len(self.skipped):,} of {count:,} images, which cannot "
            f"be read: {listed([repr(name) for name in self.skipped], MAX_NAMED)}"
        )

    def _try_pixels(self, picture: Image.Image | Encoded | Path) -> np.ndarray | Unreadable:
        """(C, H, W) of an image or a file; or the error."""
        try:
            return self._decoded(picture)
        except Unreadable as error:
            return error

    def _decoded(self, picture: Image.Image | Encoded | Path) -> np.ndarray:
        """(C, H, W) of an image or a file, framed and scaled."""
        return self._pixels(picture if isinstance(picture, Image.Image) else open_image(picture))

    def read(self, path: Path) -> Tensor:
        """Any image file as it would be in this data set: (C, H, W).

        Raises:
            Unreadable: it is no image, or damaged.
        """
        return torch.from_numpy(self._decoded(path))

    def read_mask(self, path: Path) -> Tensor:
        """Where an image file is white, framed like the images: bool (1, H, W).

        Grey levels from 128 are white; transparent pixels and padding are black.

        Raises:
            Unreadable: it is no image, or damaged.
        """
        nearest = Image.Resampling.NEAREST
        pixels = self._pixels(open_image(path), channels=1, background=0, resample=nearest)
        return torch.from_numpy(pixels >= 128)

    def _pixels(self, picture: Image.Image, **changes: Any) -> np.ndarray:
        """uint8 (C, H, W); closes the image. `changes`: of the arguments of `square`."""
        keys = "channels", "image_size", "resize_mode", "center_crop", "background", "resample"
        with closing(picture):
            return square(picture, **{key: getattr(self, key) for key in keys} | changes)

    @cached_property
    def arrays(self) -> tuple[np.ndarray | Rows, np.ndarray]:
        """(N, C, H, W), a read-only memory map, or `Rows` if the file system has none; and int64
        (N,)."""
        self.prepare()
        if (arrays := self._read()) is None:
            raise InputError(f"data: {str(self.cache_file)!r} was removed a moment ago. Try again.")
        return arrays

    @cached_property
    def pixels(self) -> str:
        """SHA-256 of all images and labels in their order, whatever files they came from."""
        found = hashlib.sha256(repr((self.shape, self.dtype, len(self))).encode())
        for first in range(0, len(self), 1024):
            rows = range(first, min(first + 1024, len(self)))
            for part in self.__getitems__(rows):
                found.update(part.contiguous().numpy().tobytes())
        return found.hexdigest()

    def __len__(self) -> int:
        return len(self.arrays[1])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) and int64 (B,): a whole batch at once.

        Raises:
            InputError: the file was truncated in the meantime.
        """
        images, labels = self.arrays
        index = np.asarray(indices, dtype=np.int64)
        return torch.from_numpy(self.cache.read_rows(images, index)), torch.from_numpy(
            labels[index]
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but open files: worker processes open them again."""
        return {key: v for key, v in self.__dict__.items() if key not in _OPEN}


class PictureData(ImageData):
    """A data set of image files, whose `images` are `ImageFiles`.

    `on_error`: `stop` names all damaged files and ends the run, `skip` leaves them out and logs
    their number.
    """

    def __init__(self, *, on_error: str = "stop", **arguments: Any) -> None:
        super().__init__(**arguments)
        check_limits("data", on_error=on_error)
        self.on_error = on_error


def fetch(dataset: str, data_dir: Path, by_hand: str, **arguments: Any) -> Any:
    """`torchvision.datasets.<dataset>` in `data_dir`, downloaded if missing.

    Raises:
        InputError: the download failed or its files are damaged; includes `by_hand`, instructions
            for a manual download.
    """
    from torchvision import datasets

    try:
        return getattr(datasets, dataset)(data_dir, download=True, **arguments)
    except Exception as error:  # of urllib, gdown, tarfile, zipfile, the files' parsers
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        failed = ", and the download failed" if any(map(_is_of_network, causes(error))) else ""
        message = f"data: no {dataset} in {str(data_dir)!r}{failed} ({reason}).\n{by_hand}"
        raise InputError(message) from error


def _is_of_network(error: BaseException) -> bool:
    kinds = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
    return isinstance(error, kinds) or "urlopen error" in str(error)  # torchvision drops the cause


def _stat(path: Path) -> os.stat_result:
    """The status of a file, or of a broken link itself: reading it raises the error."""
    stat = listing.stat(path) or listing.stat(path, follow_links=False)
    if stat is None:
        raise InputError(f"data: the file {str(path)!r} does not exist any more. Try again.")
    return stat


def _is_rank_zero() -> bool:
    """Whether this process is rank zero, which logs for all."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def check(key: str, value: Any, valid: bool, allowed: str) -> None:
    if not valid:
        raise InputError(f"data.{key}={value}: not possible, allowed: {allowed}")
