"""What the memory map saves: images/s of an epoch that decodes JPEGs, against one that does not.

    python benchmarks/data_cache.py [data_dir]

Both in one process and one thread, turn and turn about, so that their ratio holds on a busy
machine. Measured on 500x375 JPEGs made here, and on the pets in `data_dir` if they are there.
"""

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder, OxfordIIITPet
from torchvision.transforms import v2

from ddpm.data.base import ImageData
from ddpm.data.folder import Folder
from ddpm.data.pets import Pets

SETTINGS = {"split": "train", "channels": 3, "image_size": 64, "num_classes": None}
SETTINGS |= {"resize_mode": "crop", "background": 0, "flip": True}
SHRINK = v2.Compose([v2.Resize(64), v2.CenterCrop(64), v2.PILToTensor()])
BATCH = 64


def main(data_dir: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_photographs(work / "photographs" / "one", count=512)
        photographs = Folder(root=work / "photographs", data_dir=work, **SETTINGS)
        report("500x375 JPEGs", ImageFolder(work / "photographs", SHRINK), photographs)
        if (data_dir / "oxford-iiit-pet" / "images").is_dir():
            (work / "oxford-iiit-pet").symlink_to((data_dir / "oxford-iiit-pet").absolute())
            decoded = OxfordIIITPet(work, transform=SHRINK)
            report("pets", decoded, Pets(data_dir=work, **SETTINGS))


def make_photographs(folder: Path, *, count: int) -> None:
    """JPEGs with the detail of photographs: noise at all scales."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        layers = [
            Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).resize((500, 375))
            for size in (3, 12, 48, 192)
        ]
        pixels = np.average(layers, axis=0, weights=(8, 4, 2, 1)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}.jpg", quality=90)


def report(title: str, decoded: Dataset, cached: ImageData) -> None:
    start = time.perf_counter()
    cached.prepare()
    build = time.perf_counter() - start
    order = torch.randperm(len(cached)).tolist()
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]

    def decode(batch: list[int]) -> Tensor:
        return torch.stack([decoded[i][0] for i in batch])

    slow, fast = np.inf, np.inf
    for _ in range(3):
        slow = min(slow, epoch(decode, batches))
        fast = min(fast, epoch(lambda batch: cached.__getitems__(batch)[0], batches))
    print(f"{title}: {len(cached)} images to {cached.image_size}x{cached.image_size}")
    print(f"  decoded each time      {len(order) / slow:12,.0f} images/s")
    print(f"  memory map, batched    {len(order) / fast:12,.0f} images/s  {slow / fast:.0f} x")
    print(f"  building the cache     {len(order) / build:12,.0f} images/s  once, all threads")
    print(f"                         = {build / slow:.2f} epochs of decoding")


def epoch(load: Callable[[list[int]], Tensor], batches: list[list[int]]) -> float:
    """Seconds to load every batch."""
    start = time.perf_counter()
    for batch in batches:
        load(batch)
    return time.perf_counter() - start


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
