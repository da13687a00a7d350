"""Data sets without official splits: a fixed share of the pictures is held out of training."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from ddpm.data.base import ImageData, check, digest

HELD_OUT = "held_out"


class Holdout(ImageData):
    """The splits `train` and `held_out` of images that come without any.

    A digest of a picture's pixels decides on which side it is. So equal pictures are on the same
    side, adding pictures moves none, and a larger share contains a smaller one. Nothing is drawn,
    and no seed plays a part.

    Args:
        holdout: the share that is held out, from 0 to below 1. It is met up to chance, and a data
            set of which nothing would be left to train on is not divided.
    """

    splits = ("train", HELD_OUT)
    held_out_split = HELD_OUT

    def __init__(self, *, holdout: float = 0.0, **arguments: Any) -> None:
        super().__init__(**arguments)
        is_share = isinstance(holdout, int | float) and not isinstance(holdout, bool)
        check("holdout", holdout, is_share and 0 <= holdout < 1, "a number from 0 to below 1")
        if self.split == HELD_OUT:
            check("split", HELD_OUT, holdout > 0, "train (data.holdout=0 holds nothing out)")
        self.holdout = holdout
        self.source_split = "train"

    def held_out(self) -> "ImageData | None":
        held_out = super().held_out() if self.holdout else None
        return held_out if held_out is not None and len(held_out) else None

    def with_split(self, split: str) -> "Holdout":
        other = super().with_split(split)
        other.source_split = "train"
        return other

    @cached_property
    def fingerprint(self) -> str:
        whole = super().fingerprint
        return digest([whole, self.holdout, self.split]) if self.holdout else whole

    @cached_property
    def rows(self) -> np.ndarray:
        """The positions of this split's images among all that are cached, int64."""
        images, labels = self.arrays
        if not self.holdout:
            return np.arange(len(labels))
        held_out = self.cache.digests(images) / 2.0**64 < self.holdout
        if held_out.all():
            held_out[:] = False
        return np.flatnonzero(held_out == (self.split == HELD_OUT))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return super().__getitems__(self.rows[np.asarray(indices, dtype=np.int64)].tolist())
