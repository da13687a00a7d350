"""Scikit-learn's handwritten digits: nothing to download."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ddpm.data.holdout import Holdout


class Digits(Holdout):
    """1,797 digits of 8x8 pixels with grey levels 0..16, enlarged with `resize_mode=resize`."""

    name = "digits"
    class_names: ClassVar[list[str]] = list("0123456789")
    resample = Image.Resampling.BICUBIC

    def __init__(
        self,
        *,
        channels: int = 1,
        image_size: int = 16,
        num_classes: int | None = 10,
        resize_mode: str = "resize",
        **arguments: Any,
    ) -> None:
        super().__init__(
            channels=channels,
            image_size=image_size,
            num_classes=num_classes,
            resize_mode=resize_mode,
            **arguments,
        )

    def files(self, split: str) -> list[Path]:
        return []

    def images(self, split: str) -> Iterator[tuple[Image.Image, int]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = (digits.images * (255 / 16)).round().astype(np.uint8)  # (N, 8, 8)
        for image, label in zip(pixels, digits.target, strict=True):
            yield Image.fromarray(image), int(label)
