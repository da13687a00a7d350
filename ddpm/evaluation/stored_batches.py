"""The batches of an evaluation on the disk: a stopped one continues with those that are there."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.errors import InputError
from ddpm.evaluation.reference import Reference, load, save_shared
from ddpm.features.base import Features
from ddpm.metrics.base import Pictures
from ddpm.runner.runs import scores

SAMPLES = "samples"
Item = tuple[str, range]  # SAMPLES or the role of a reference, and a batch of its pictures


class StoredBatches(ABC):
    """Of samples the images and their features, of references the features; each batch a file.

    Args:
        folder: that the files are in.
        features: None: no metric needs any.
    """

    def __init__(self, folder: Path, features: Features | None) -> None:
        self.folder, self.features = folder, features

    @abstractmethod
    def images_file(self, batch: range) -> Path:
        """The file of the images of a batch of samples."""

    @abstractmethod
    def features_file(self, role: str, batch: range) -> Path:
        """The file of the features of a batch of SAMPLES, or of the reference of that role."""

    @cached_property
    def features_id(self) -> str:
        """May train the features first."""
        assert self.features is not None
        return str(scores.ident(scores.known(self.features.passport())))

    def missing(self, batches: Sequence[range], references: Mapping[str, Reference]) -> list[Item]:
        """The batches of samples to draw, then those of references to describe."""
        todo = [(SAMPLES, batch) for batch in batches if not self.has_samples(batch)]
        for role, reference in references.items():
            todo += [(role, batch) for batch in self.undescribed(reference)]
        return todo

    def has_samples(self, batch: range) -> bool:
        """Whether the images of a batch of samples, and the features if any are needed, are there
        and whole."""
        if self.features is not None and load(self.features_file(SAMPLES, batch)) is None:
            return False
        return self.has_images(batch)

    def has_images(self, batch: range) -> bool:
        return load(self.images_file(batch)) is not None

    def undescribed(self, reference: Reference) -> list[range]:
        """The batches of a reference that have no features yet, neither here nor in the cache of
        its data."""
        if self.features is None or load(self.cache(reference)) is not None:
            return []
        return [
            batch
            for batch in reference.batches
            if load(self.features_file(reference.role, batch)) is None
        ]

    def cache(self, reference: Reference) -> Path:
        return reference.features_file(self.features_id)

    def samples(self, batches: Sequence[range], labels: Sequence[int] | None) -> Pictures:
        """All samples, with their features.

        Raises:
            InputError: a file was removed.
        """
        images = _read(map(self.images_file, batches))
        described = None
        if self.features is not None:
            described = _read(self.features_file(SAMPLES, batch) for batch in batches)
        return Pictures(images, described, None if labels is None else torch.tensor(labels))

    def features_of(self, reference: Reference) -> Tensor | None:
        """The features of a reference, from the cache of its data; puts new ones there.

        Raises:
            InputError: a file was removed.
        """
        if self.features is None:
            return None
        if (found := load(self.cache(reference))) is not None:
            return torch.from_numpy(found)
        files = [self.features_file(reference.role, batch) for batch in reference.batches]
        described = _read(files)
        if save_shared(self.cache(reference), described.numpy()):
            for file in files:
                file.unlink(missing_ok=True)
        return described


def _read(files: Iterable[Path]) -> Tensor:
    """The arrays in files, one after the other."""
    arrays = []
    for file in files:
        if (found := load(file)) is None:
            raise InputError(f"{file}: was removed a moment ago. Repeat the command.")
        arrays.append(found)
    return torch.from_numpy(np.concatenate(arrays))
