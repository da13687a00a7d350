"""A training set larger than memory: what a process that reads it takes, and how fast it reads.

    python benchmarks/large_data.py [--gigabytes 20] [--written 2] [--steps 3000]

Makes a file of so many gigabytes without content (a sparse one: what is read of it never comes from
a disk), reads random batches from it as training does, and prints the memory of the process on the
way: its own, which must not grow, and what of the page cache it has mapped, which is nobody's and
must stay bounded. Then the same for a file that was written, whose pages are thrown out of the
cache first (cold) and are all in it (warm), with other ways to read it beside ours.
"""

import argparse
import mmap
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from ddpm.data.base import ImageData
from ddpm.randomness import Order
from ddpm.training.loader import load

SIZE, CHANNELS, BATCH = 64, 3, 128
IMAGE = CHANNELS * SIZE * SIZE  # bytes


class Made(ImageData):
    """Images of 64x64 RGB in a file that lies there already."""

    name = "made"

    def __init__(self, folder: Path, gigabytes: float = 0, *, written: bool) -> None:
        super().__init__(
            **{"data_dir": folder, "split": "train", "channels": CHANNELS, "image_size": SIZE},
            **{"num_classes": None, "resize_mode": "pad", "background": 0, "flip": False},
        )
        self.count, self.written = int(gigabytes * 1e9 / IMAGE), written

    def files(self, split: str) -> list[Path]:
        return []

    def prepare(self) -> None:
        if self.cache_file.exists():
            return
        self.cache_file.parent.mkdir(parents=True, exist_ok=True)
        shape = (self.count, CHANNELS, SIZE, SIZE)
        with open(self.cache_file, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            if self.written:
                block = np.random.default_rng(0).bytes(1000 * IMAGE)
                for first in range(0, self.count, 1000):
                    file.write(block[: min(1000, self.count - first) * IMAGE])
                file.flush()
                os.fsync(file.fileno())
            file.truncate(file.tell() if self.written else file.tell() + self.count * IMAGE)
        np.save(self.cache_file.with_suffix(".labels.npy"), np.zeros(self.count, np.int64))

    def forget(self) -> None:
        """Throw the file out of the page cache."""
        with open(self.cache_file, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory() -> dict[str, float]:
    """Resident megabytes of this process: its own, and what it has mapped of files."""
    with open("/proc/self/status") as file:
        rows = dict(line.split(":", 1) for line in file if line.startswith("Rss"))
    return {name: int(rows[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def batches(data: ImageData, steps: int, seed: int = 0) -> Iterator[torch.Tensor]:
    """What the training loop would be given."""
    order = Order(len(data), seed, BATCH, slice(0, BATCH), 0, steps)
    for images, _ in load(data, order, torch.device("cpu"), 0):
        yield images


def watch(data: ImageData, steps: int) -> None:
    """Print the memory before, in the middle and after."""
    rows = [("before", memory())]
    for n, images in enumerate(batches(data, steps), start=1):
        images.sum()
        if n in (1, steps // 4, steps // 2, steps):
            rows.append((f"step {n}", memory()))
    for name, figures in rows:
        print(f"  {name:12}", "  ".join(f"{k} {v:8.1f} MB" for k, v in figures.items()))


def mapped(data: ImageData, advice: int | None) -> Callable[[list[int]], np.ndarray]:
    """A batch by one index into a memory map, as numpy does it."""
    array = np.load(data.cache_file, mmap_mode="r")
    if advice is not None:
        array._mmap.madvise(advice)
    return lambda indices: np.asarray(array)[indices]


def speed(data: Made, get: Callable, steps: int, *, cold: bool) -> float:
    """Images per second of random batches."""
    if cold:
        data.forget()
    order = list(Order(len(data), 1, BATCH, slice(0, BATCH), 0, steps))
    began = time.perf_counter()
    for indices in order:
        get(indices)
    return steps * BATCH / (time.perf_counter() - began)


def compare(data: Made, steps: int) -> None:
    """Ways to read, in turns, the file thrown out of the cache before each, and then kept in it."""
    ways = {
        "ours": lambda: Made(data.data_dir, written=True).__getitems__,
        "memory map": lambda: mapped(data, None),
        "map, MADV_RANDOM": lambda: mapped(data, mmap.MADV_RANDOM),
    }
    for cold in (True, False):
        for turn in range(3):
            for name, make in ways.items():
                get = make()
                if not cold:
                    speed(data, get, len(data) // BATCH, cold=False)
                rate = speed(data, get, steps // 10 if cold else steps, cold=cold)
                del get  # what is on somebody's map cannot be thrown out of the cache
                word = "cold" if cold else "warm"
                print(f"  {word} {turn + 1}  {name:18} {rate:10.0f} images/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=20, help="of the sparse file")
    parser.add_argument("--written", type=float, default=2, help="gigabytes of the other")
    parser.add_argument("--steps", type=int, default=3000, help=f"batches of {BATCH}")
    parser.add_argument("--folder", default=None, help="where the files may be for a while")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        sparse = Made(Path(folder) / "sparse", asked.gigabytes, written=False)
        sparse.prepare()
        print(f"{len(sparse):,} images, {asked.gigabytes:g} GB, sparse: {asked.steps} batches")
        watch(sparse, asked.steps)
        written = Made(Path(folder) / "written", asked.written, written=True)
        written.prepare()
        print(f"{len(written):,} images, {asked.written:g} GB, written")
        compare(written, asked.steps)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    main()
