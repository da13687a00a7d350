"""Zalando's articles of clothing (arXiv:1708.07747)."""

from pathlib import Path
from typing import Any, ClassVar

from ddpm.data.base import ImageData, fetch

BY_HAND = (
    "By hand: put {train,t10k}-images-idx3-ubyte.gz and {train,t10k}-labels-idx1-ubyte.gz, from\n"
    "https://github.com/zalandoresearch/fashion-mnist (data/fashion), into the folder "
    "FashionMNIST/raw there."
)


class FashionMNIST(ImageData):
    """60,000 (train) or 10,000 (test) grey articles of 28x28 pixels."""

    name = "fashion_mnist"
    splits = ("train", "test")
    held_out_split = "test"
    class_names: ClassVar[list[str]] = [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ]

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
        return [self.root / "FashionMNIST" / "raw" / name for name in names]

    def images(self, split: str) -> Any:
        return fetch("FashionMNIST", self.root, BY_HAND, train=split == "train")
