"""Handwritten digits of LeCun, Cortes and Burges."""

from pathlib import Path
from typing import Any, ClassVar

from ddpm.data.base import ImageData, fetch

BY_HAND = (
    "By hand: put {train,t10k}-images-idx3-ubyte.gz and {train,t10k}-labels-idx1-ubyte.gz, from\n"
    "https://ossci-datasets.s3.amazonaws.com/mnist/, into the folder MNIST/raw there."
)


class MNIST(ImageData):
    """60,000 (train) or 10,000 (test) grey digits of 28x28 pixels."""

    name = "mnist"
    splits = ("train", "test")
    held_out_split = "test"
    class_names: ClassVar[list[str]] = list("0123456789")

    def __init__(
        self,
        *,
        channels: int = 1,
        image_size: int = 32,
        num_classes: int | None = 10,
        resize_mode: str = "pad",
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
        stem = "train" if split == "train" else "t10k"
        names = f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"
        return [self.root / "MNIST" / "raw" / name for name in names]

    def images(self, split: str) -> Any:
        return fetch("MNIST", self.root, BY_HAND, train=split == "train")
