"""Pictures of the user's own, in a folder or in an archive, of any size and depth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm.data import values
from ddpm.data.base import PictureData
from ddpm.data.decode import Encoded
from ddpm.data.holdout import NamedSplits
from ddpm.images import codec_of
from ddpm.limits.image_size import Size
from ddpm.limits.parts import check_limits

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp")


class Pictures(NamedSplits, PictureData):
    """Pictures of 8 bits, or with a stated range of values.

    Args:
        value_range: the values that the network sees as -1 and 1. None: 8 bits, and whatever has
            more is scaled down. Otherwise values are kept as they are, and TIFF, .npy and .npz
            files are read, too. More than 4 channels need such files, of uint8 by default.
    """

    allowed_channels = range(1, 17)

    def __init__(
        self,
        *,
        image_size: Size = 64,
        resize_mode: str = "crop",
        background: int = 255,
        value_range: Sequence[float] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            image_size=image_size, resize_mode=resize_mode, background=background, **arguments
        )
        check_limits("data", value_range=value_range)
        self.keeps_values = value_range is not None or self.channels > 4
        self.value_range = None
        if self.keeps_values:
            low, high = value_range or (0, 255)
            self.value_range = (low, high)
            self.dtype = str(codec_of(self.value_range).dtype).removeprefix("torch.")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The endings of the files that are pictures."""
        return (*SUFFIXES, *(values.SUFFIXES if self.keeps_values else ()))

    @property
    def settings(self) -> dict[str, Any]:
        stated = {"value_range": list(self.value_range)} if self.value_range is not None else {}
        return super().settings | stated

    def _decoded(self, picture: Image.Image | Encoded | Path) -> np.ndarray:
        if self.value_range is None or isinstance(picture, Image.Image):
            return super()._decoded(picture)
        return values.pixels(
            picture,
            shape=self.shape,
            dtype=self.dtype,
            value_range=self.value_range,
            resize_mode=self.resize_mode,
            background=self.background,
        )
