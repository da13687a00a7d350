"""Small data sets and folders of images."""

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
