"""Aligned faces of celebrities (Liu et al. 2015, arXiv:1411.7766)."""

from pathlib import Path
from typing import Any

from ddpm.data.base import ImageFiles, PictureData, check, fetch, is_int

BY_HAND = (
    "By hand, from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html into the folder celeba there: "
    "img_align_celeba.zip (unpacked),\nlist_attr_celeba.txt, identity_CelebA.txt, "
    "list_bbox_celeba.txt, list_landmarks_align_celeba.txt, list_eval_partition.txt."
)


class CelebA(PictureData):
    """162,770 (train), 19,867 (valid) or 19,962 (test) faces of 178x218 pixels; no classes.

    `center_crop`: side in pixels of the centre square that is scaled; None: the whole width.
    """

    name = "celeba"
    splits = ("train", "valid", "test")
    held_out_split = "valid"

    def __init__(
        self,
        *,
        image_size: int = 64,
        resize_mode: str = "crop",
        center_crop: int | None = 140,
        flip: bool = True,
        **arguments: Any,
    ) -> None:
        super().__init__(image_size=image_size, resize_mode=resize_mode, flip=flip, **arguments)
        is_side = center_crop is None or is_int(center_crop, 1)
        check("center_crop", center_crop, is_side, "null, an integer above 0")
        self.center_crop = center_crop

    def files(self, split: str) -> list[Path]:
        return [
            self.root / "celeba" / "list_eval_partition.txt"
        ]  # stat of 200,000 images would be slow

    def images(self, split: str) -> ImageFiles:
        names = fetch("CelebA", self.root, BY_HAND, split=split).filename
        folder = self.root / "celeba" / "img_align_celeba"
        return ImageFiles([folder / name for name in names], [0] * len(names))
