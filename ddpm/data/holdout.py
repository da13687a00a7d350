"""Data sets without official splits: fixed shares of the pictures are held out of training."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from torch import Tensor

from ddpm.data.base import ImageData, check, digest
from ddpm.limits.parts import check_limits

TRAIN, HELD_OUT, TEST, ALL = "train", "held_out", "test", "all"
_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), HELD_OUT),
    "test": TEST,
}


class Holdout(ImageData):
    """The splits `train`, `held_out` and `test` of images that come without any; `all`: all images.

    A digest of a picture's pixels decides on which side it is. So equal pictures are on the same
    side, adding pictures moves none, and a larger share contains a smaller one. Nothing is drawn,
    and no seed plays a part.

    Args:
        holdout: the share that is held out, from 0 to below 1. It is met up to chance, and a data
            set of which nothing would be left to train on is not divided.
        test_share: the share that neither training nor its validation sees.
    """

    splits = (TRAIN, HELD_OUT, TEST, ALL)
    held_out_split = HELD_OUT

    def __init__(self, *, holdout: float = 0.0, test_share: float = 0.0, **arguments: Any) -> None:
        super().__init__(**arguments)
        check_limits("data", holdout=holdout, test_share=test_share)
        room = f"a number below {1 - holdout:g}, as data.holdout={holdout}"
        check("test_share", test_share, holdout + test_share < 1, room)
        self.holdout, self.test_share = holdout, test_share
        self.source_split = TRAIN
        self._check_split()

    def _check_split(self) -> None:
        """A split that holds nothing is a mistake."""
        if self.split == HELD_OUT:
            check("split", HELD_OUT, self.holdout > 0, "train (data.holdout=0 holds nothing out)")
        if self.split == TEST:
            allowed = "train (data.test_share=0 sets nothing apart)"
            check("split", TEST, self.test_share > 0, allowed)

    def held_out(self) -> "ImageData | None":
        held_out = super().held_out() if self.holdout else None
        return held_out if held_out is not None and len(held_out) else None

    def with_split(self, split: str) -> Self:
        other = super().with_split(split)
        other.source_split = TRAIN
        return other

    @cached_property
    def fingerprint(self) -> str:
        whole = super().fingerprint
        if not self.holdout and not self.test_share:
            return whole
        shares = [self.test_share] if self.test_share else []  # as before there was one
        return digest([whole, self.holdout, self.split, *shares])

    @cached_property
    def rows(self) -> np.ndarray:
        """The positions of this split's images among all that are cached, int64."""
        images, labels = self.arrays
        if self.split == ALL or not (self.holdout or self.test_share):
            return np.arange(len(labels))
        place = self.cache.digests(images) / 2.0**64
        side = np.full(len(labels), TRAIN, dtype="U8")
        side[place < self.holdout + self.test_share] = TEST
        side[place < self.holdout] = HELD_OUT
        if not (side == TRAIN).any():
            side[:] = TRAIN
        return np.flatnonzero(side == self.split)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return super().__getitems__(self.rows[np.asarray(indices, dtype=np.int64)].tolist())


class NamedSplits(Holdout):
    """Images that may come with splits of their own.

    Args:
        splits: `hash`: by `holdout` and `test_share`, as above. `named`: folders or files named
            train, val (valid, validation, dev) and test are the splits; `val` is `held_out`.
    """

    def __init__(self, *, splits: str = "hash", **arguments: Any) -> None:
        check_limits("data", splits=splits)
        self.by_name = splits == "named"
        super().__init__(**arguments)
        if self.by_name:
            self.holdout = self.test_share = 0.0
            self.source_split = self.split

    def _check_split(self) -> None:
        if not self.by_name:
            super()._check_split()

    def held_out(self) -> ImageData | None:
        if not self.by_name:
            return super().held_out()
        if self.split != TRAIN or not self.has_split(HELD_OUT):
            return None
        return self.with_split(HELD_OUT)

    def has_split(self, split: str) -> bool:
        """Whether there are images of this split, by their names."""
        raise NotImplementedError

    def with_split(self, split: str) -> Self:
        other = super().with_split(split)
        if self.by_name:
            other.source_split = split
        return other

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | ({"splits": "named"} if self.by_name else {})


def split_of(name: str) -> str | None:
    """The split that a path names by its first part, `train/cat/0.png` or `train-0001.tar`; None:
    none."""
    word = re.match(r"[a-z]+", name.lower())
    return _NAMES.get(word[0]) if word else None


def in_split(name: str, split: str) -> bool:
    return split_of(name) is not None if split == ALL else split_of(name) == split
