"""Oxford-IIIT Pet: cats and dogs (Parkhi et al. 2012)."""

from pathlib import Path
from typing import Any, ClassVar

from ddpm.data.base import ImageFiles, PictureData, fetch
from ddpm.runner.safe_io import listing

OFFICIAL = {"train": ["trainval"], "test": ["test"], "all": ["trainval", "test"]}
BY_HAND = (
    "By hand: unpack images.tar.gz and annotations.tar.gz, from\n"
    "https://www.robots.ox.ac.uk/~vgg/data/pets/, into the folder oxford-iiit-pet there."
)


class Pets(PictureData):
    """3,680 (train: the official trainval), 3,669 (test) or all 7,349 photographs of 37 breeds."""

    name = "pets"
    splits = ("train", "test", "all")
    held_out_split = "test"
    class_names: ClassVar[list[str]] = [
        *("Abyssinian", "American Bulldog", "American Pit Bull Terrier", "Basset Hound", "Beagle"),
        *("Bengal", "Birman", "Bombay", "Boxer", "British Shorthair", "Chihuahua", "Egyptian Mau"),
        *("English Cocker Spaniel", "English Setter", "German Shorthaired", "Great Pyrenees"),
        *("Havanese", "Japanese Chin", "Keeshond", "Leonberger", "Maine Coon"),
        *("Miniature Pinscher", "Newfoundland", "Persian", "Pomeranian", "Pug", "Ragdoll"),
        *("Russian Blue", "Saint Bernard", "Samoyed", "Scottish Terrier", "Shiba Inu", "Siamese"),
        *("Sphynx", "Staffordshire Bull Terrier", "Wheaten Terrier", "Yorkshire Terrier"),
    ]

    def __init__(
        self,
        *,
        image_size: int = 64,
        num_classes: int | None = 37,
        resize_mode: str = "crop",
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
        folder = self.root / "oxford-iiit-pet"
        tables = [f"{official}.txt" for official in OFFICIAL[split]]
        photographs = listing.paths(folder / "images", "*.jpg") or [folder / "images"]
        return [*(folder / "annotations" / table for table in tables), *photographs]

    def images(self, split: str) -> ImageFiles:
        parts = [
            fetch("OxfordIIITPet", self.root, BY_HAND, split=official)
            for official in OFFICIAL[split]
        ]
        # The public way decodes at full size.
        paths = [path for pets in parts for path in pets._images]
        return ImageFiles(paths, [label for pets in parts for label in pets._labels])
