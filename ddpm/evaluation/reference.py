"""The real pictures that samples are compared with, and what is kept of them on the disk."""

import contextlib
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.data.base import ImageData
from ddpm.metrics.base import Pictures
from ddpm.pipeline import split
from ddpm.randomness import mix
from ddpm.runner.runs.scores import Passport
from ddpm.runner.safe_io import atomic

REFERENCE_SEED = 0  # of the real pictures of trainings, whose seeds must not make another ruler
BATCH = 256  # real pictures whose features are computed at once


@dataclass(frozen=True)
class Reference:
    """A split of the data, or a subset of it.

    Args:
        role: train or held_out.
        most: None: all; else so many, drawn by the seed.
    """

    role: str
    data: ImageData
    most: int | None
    seed: int

    @cached_property
    def indices(self) -> list[int]:
        return subset(len(self.data), self.most, self.seed)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def batches(self) -> list[range]:
        return split(range(len(self)), BATCH)

    def images(self, batch: range) -> Tensor:
        return self.data.__getitems__(self.indices[batch.start : batch.stop])[0]

    def passport(self) -> Passport:
        return {
            "data": self.data.name,
            "fingerprint": self.data.fingerprint[:12],
            "split": self.data.split,
            "n": len(self),
            "seed": "none" if self.most is None or len(self) == len(self.data) else self.seed,
        }

    def features_file(self, features_id: str) -> Path:
        """In the cache of the data set."""
        drawn = "" if len(self) == len(self.data) else f"-{len(self)}-{self.seed}"
        data = self.data
        stem = f"{data.name}-{data.split}-{data.fingerprint[:16]}{drawn}-{features_id}"
        return data.data_dir / "cache" / f"features-{stem}.npy"

    def pictures(self, features: Tensor | None) -> Pictures:
        """All of them. A whole file stays on the disk, where the file system can map it."""
        rows, labels = self.data.arrays
        if len(self) == len(labels) and isinstance(rows, np.ndarray):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the array is read-only
                images, classes = torch.from_numpy(rows), torch.from_numpy(labels)
        else:
            images, classes = self.data.__getitems__(self.indices)
        return Pictures(images, features, classes if self.data.class_names else None)


def references_of(data: ImageData, most: int | None, seed: int) -> dict[str, Reference]:
    """By role, the training pictures, and the held-out ones where the data have some."""
    found = {"train": data}
    if (held_out := data.held_out()) is not None:
        held_out.prepare()
        found["held_out"] = held_out
    return {role: Reference(role, pictures, most, seed) for role, pictures in found.items()}


def subset(total: int, most: int | None, seed: int) -> list[int]:
    """All indices, or `most` of them drawn by the seed, in rising order."""
    if most is None or total <= most:
        return list(range(total))
    generator = torch.Generator().manual_seed(mix(seed, "subset", total))
    return sorted(torch.randperm(total, generator=generator)[:most].tolist())


def load(file: Path) -> np.ndarray | None:
    """The array in a file; None: there is none, or it is not whole."""
    try:
        return np.load(file)
    except (OSError, ValueError, EOFError):
        return None


def save(file: Path, array: np.ndarray) -> None:
    """Write an array, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(file) as (temporary,), open(temporary, "wb") as opened:
        np.save(opened, array)


def save_shared(file: Path, array: np.ndarray) -> bool:
    """Write an array into the cache of a data set; False if that cannot be written."""
    with contextlib.suppress(OSError):
        save(file, array)
        return True
    return False
