"""Aligned faces of celebrities (Liu et al. 2015, arXiv:1411.7766)."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from ddpm.data.base import ImageFiles, PictureData, check, fetch
from ddpm.errors import nearest
from ddpm.limits.image_size import Size
from ddpm.limits.parts import check_limits

ATTRIBUTES = (
    *("5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs"),
    *("Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows"),
    *("Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup"),
    *("High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard"),
    *("Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns"),
    *("Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat"),
    *("Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young"),
)
MAX_ATTRIBUTES = 8

BY_HAND = (
    "By hand, from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html into the folder celeba there: "
    "img_align_celeba.zip (unpacked),\nlist_attr_celeba.txt, identity_CelebA.txt, "
    "list_bbox_celeba.txt, list_landmarks_align_celeba.txt, list_eval_partition.txt."
)


class CelebA(PictureData):
    """162,770 (train), 19,867 (valid) or 19,962 (test) faces of 178x218 pixels.

    `center_crop`: side in pixels of the centre square that is scaled; None: the whole width.
    `attribute`: one of the 40 attributes, or several, as classes: with two of them, class 2 has the
    first and not the second. None: no classes.
    """

    name = "celeba"
    splits = ("train", "valid", "test")
    held_out_split = "valid"

    def __init__(
        self,
        *,
        image_size: Size = 64,
        resize_mode: str = "crop",
        center_crop: int | None = 140,
        flip: bool = True,
        attribute: str | Sequence[str] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(image_size=image_size, resize_mode=resize_mode, flip=flip, **arguments)
        names = [attribute] if isinstance(attribute, str) else list(attribute or [])
        for name in names:
            allowed = f"some of {', '.join(ATTRIBUTES)}.{nearest(str(name), ATTRIBUTES)}"
            check("attribute", name, name in ATTRIBUTES, allowed)
        few = len(names) <= MAX_ATTRIBUTES and len(set(names)) == len(names)
        check("attribute", attribute, few, f"up to {MAX_ATTRIBUTES} attributes, each once")
        self.attributes = names
        check_limits("data", center_crop=center_crop)
        self.center_crop = center_crop

    @property
    def class_names(self) -> list[str] | None:
        pairs = [(f"not {name}", name) for name in self.attributes]
        return [", ".join(names) for names in product(*pairs)] if pairs else None

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | ({"attribute": self.attributes} if self.attributes else {})

    def files(self, split: str) -> list[Path]:
        return [
            self.root / "celeba" / "list_eval_partition.txt"
        ]  # stat of 200,000 images would be slow

    def images(self, split: str) -> ImageFiles:
        faces = fetch("CelebA", self.root, BY_HAND, split=split)
        folder = self.root / "celeba" / "img_align_celeba"
        labels = [0] * len(faces.filename)
        for attribute in self.attributes:
            column = faces.attr[:, faces.attr_names.index(attribute)].tolist()
            labels = [2 * label + int(has) for label, has in zip(labels, column, strict=True)]
        return ImageFiles([folder / name for name in faces.filename], labels)
