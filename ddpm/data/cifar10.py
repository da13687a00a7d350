"""Krizhevsky's small photographs in ten classes."""

from pathlib import Path
from typing import Any, ClassVar

from ddpm.data.base import ImageData, fetch

BY_HAND = (
    "By hand: put cifar-10-python.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html, "
    "into that folder."
)


class CIFAR10(ImageData):
    """50,000 (train) or 10,000 (test) colour photographs of 32x32 pixels."""

    name = "cifar10"
    splits = ("train", "test")
    held_out_split = "test"
    class_names: ClassVar[list[str]] = [
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ]

    def __init__(
        self,
        *,
        image_size: int = 32,
        num_classes: int | None = 10,
        resize_mode: str = "resize",
        flip: bool = True,
        **arguments: Any,
    ) -> None:
        super().__init__(
            image_size=image_size,
            num_classes=num_classes,
            resize_mode=resize_mode,
            flip=flip,
            **arguments,
        )

    def files(self, split: str) -> list[Path]:
        train = [f"data_batch_{i}" for i in range(1, 6)]
        names = train if split == "train" else ["test_batch"]
        return [self.root / "cifar-10-batches-py" / name for name in names]

    def images(self, split: str) -> Any:
        return fetch("CIFAR10", self.root, BY_HAND, train=split == "train")
