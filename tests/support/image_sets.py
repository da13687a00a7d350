"""Small data sets and folders of images."""

import hashlib
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from ddpm.data import base
from ddpm.data.folder import Folder

ROOT = Path(__file__).parents[2]


fork = multiprocessing.get_context("fork")


def build(name, data_dir, **changes):
    """conf/data/<name>.yaml as the program builds it."""
    config = OmegaConf.create({"data_dir": str(data_dir), "data": None})
    config.data = OmegaConf.load(ROOT / "conf" / "data" / f"{name}.yaml")
    config.data.pop("defaults", None)  # Hydra's
    config.data.update(changes)
    try:
        return instantiate(config.data, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ from None


def folder(root, kind=Folder, **changes):
    """A `Folder` of `root` with its cache beside it."""
    settings = {"channels": 3, "image_size": 8, "num_classes": None, "resize_mode": "resize"}
    settings |= {"split": "train", "background": 255, "flip": False, "root": root}
    return kind(data_dir=Path(root).parent, **(settings | changes))


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def tree(tmp_path):
    """A folder of five PNGs in two classes, and their pixels (N, 8, 8, C) in the order of paths."""
    names = ["a/1.png", "a/2.PNG", "b/1.png", "b/deep/er/0.png", "b/deep/z.png"]
    pixels = random_pixels(len(names), 8, 8, 3)
    for name, image in zip(names, pixels, strict=True):
        save(tmp_path / "images" / name, image)
    return tmp_path / "images", pixels


def everything(data):
    images, labels = data.__getitems__(range(len(data)))
    return images.permute(0, 2, 3, 1).numpy(), labels.tolist()


def fake_celeba(data_dir, monkeypatch, faces):
    """A CelebA of our own, whose checksums replace the official ones.

    Args:
        faces: (split, Male, Smiling, pixels uint8 (218, 178, 3)) of each.
    """
    celeba = data_dir / "celeba"
    names = [f"{n:06}.jpg" for n in range(1, len(faces) + 1)]
    for name, (*_, pixels) in zip(names, faces, strict=True):
        save(celeba / "img_align_celeba" / name, pixels, quality=100)
    splits = ("train", "valid", "test")
    count = str(len(names))
    named = list(zip(names, faces, strict=True))
    tables = {
        "list_eval_partition.txt": [f"{n} {splits.index(face[0])}" for n, face in named],
        "identity_CelebA.txt": [f"{n} 7" for n in names],
        "list_bbox_celeba.txt": [count, "image_id x_1", *(f"{n} 1" for n in names)],
        "list_landmarks_align_celeba.txt": [count, "lefteye_x", *(f"{n} 1" for n in names)],
        "list_attr_celeba.txt": [
            *(count, "Male Smiling Young"),
            *(f"{n} {2 * male - 1} {2 * smiling - 1} 1" for n, (_, male, smiling, _) in named),
        ],
    }
    for name, lines in tables.items():
        (celeba / name).write_text("\n".join(lines) + "\n")
    sums = {n: hashlib.md5((celeba / n).read_bytes(), usedforsecurity=False) for n in tables}
    monkeypatch.setattr(
        "torchvision.datasets.CelebA.file_list", [("", sums[n].hexdigest(), n) for n in tables]
    )


class Counted(Folder):
    """Takes its time, and counts in shared memory how often it was asked for images."""

    built = fork.Value("i", 0)

    def images(self, split):
        with self.built.get_lock():
            self.built.value += 1
        time.sleep(0.3)
        return super().images(split)


class Large(base.ImageData):
    """Images of 64x64 RGB, each of one number."""

    name = "large"

    def __init__(self, folder, count):
        self.count = count
        size = {
            "channels": 3,
            "image_size": 64,
            "resize_mode": "pad",
            "background": 0,
            "flip": False,
        }
        super().__init__(data_dir=folder, split="train", num_classes=None, **size)

    def files(self, split):
        return []

    def images(self, split):
        return ((Image.new("RGB", (64, 64), (n % 251,) * 3), 0) for n in range(self.count))
