"""The common part of `mnist` and `fashion_mnist`, whose files have the same form (IDX)."""

from pathlib import Path
from typing import Any, ClassVar

from ddpm.data.base import ImageData, fetch

BY_HAND = (
    "By hand: put {{train,t10k}}-images-idx3-ubyte.gz and {{train,t10k}}-labels-idx1-ubyte.gz,\n"
    "from {source}, into the folder {dataset}/raw there."
)


class IDXData(ImageData):
    """60,000 (train) or 10,000 (test) grey images of 28x28 pixels, in ten classes."""

    splits = ("train", "test")
    held_out_split = "test"
    dataset: ClassVar[str]  # torchvision's name, and that of the folder
    source: ClassVar[str]  # where the files are, for a download by hand

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
        return [self.root / self.dataset / "raw" / name for name in names]

    def images(self, split: str) -> Any:
        by_hand = BY_HAND.format(source=self.source, dataset=self.dataset)
        return fetch(self.dataset, self.root, by_hand, train=split == "train")
