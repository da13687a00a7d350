"""How good are the digits of a run? Judged by a classifier that only knows the real ones.

    python benchmarks/digits_quality.py outputs/train/unet-digits/<time>
    python benchmarks/digits_quality.py <run> --sampler ddpm --picture digits.png

An SVC is trained on the 1,797 real digits at the size of the run. Of the samples it tells
  confident   how many it gives a probability of 0.8 or more (beside: of real digits held out),
  classes     how many of the ten digits occur among those,
  distance    the median distance to the nearest real digit, relative to the median distance of a
              real digit to its nearest neighbour: far below 1 would mean copies.
"""

import argparse
import os
import time

import numpy as np
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC
from torch import Tensor

from ddpm import Pipeline
from ddpm.data.digits import Digits
from ddpm.images import make_grid, save_png
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM

SAMPLERS = {
    "run": lambda: None,
    "respaced": lambda: DDPM(steps=50, variance="auto"),
    "ddpm": lambda: DDPM(steps=None, variance="auto"),
    "ddim": lambda: DDIM(steps=50, eta=0.0),
}
CONFIDENT = 0.8


def flat(images: Tensor) -> np.ndarray:
    return images.reshape(len(images), -1).numpy() / 255


def real_digits(size: int, data_dir: str) -> tuple[np.ndarray, np.ndarray]:
    """The real digits, flat in [0, 1], and their labels."""
    data = Digits(
        data_dir=data_dir,
        split="train",
        channels=1,
        image_size=size,
        num_classes=10,
        fit="resize",
        background=0,
        flip=False,
    )
    images, labels = data.__getitems__(list(range(len(data))))
    return flat(images), labels.numpy()


def judge(samples: np.ndarray, real: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The figures the head of this file explains."""
    classifier = SVC(probability=True, random_state=0)
    held_out = cross_val_predict(classifier, real, labels, cv=5, method="predict_proba")
    probabilities = classifier.fit(real, labels).predict_proba(samples)
    confident = probabilities.max(1) >= CONFIDENT
    neighbours = NearestNeighbors(n_neighbors=2).fit(real)
    among_real = np.median(neighbours.kneighbors(real)[0][:, 1])
    to_real = np.median(neighbours.kneighbors(samples, n_neighbors=1)[0])
    return {
        "confident": confident.mean(),
        "confident_real": (held_out.max(1) >= CONFIDENT).mean(),
        "classes": len(set(probabilities.argmax(1)[confident])),
        "distance": to_real / among_real,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1000, help="of the first sample")
    parser.add_argument("--sampler", choices=SAMPLERS, default="run")
    parser.add_argument("--data-dir", default=os.environ.get("DDPM_DATA", "data"))
    parser.add_argument("--picture", help="also write a grid of the first 100 here")
    options = parser.parse_args()

    pipeline = Pipeline.from_checkpoint(options.run, sampler=SAMPLERS[options.sampler]())
    began = time.perf_counter()
    images = pipeline.sample(options.samples, seed=options.seed, batch_size=options.samples)
    seconds = time.perf_counter() - began
    if options.picture:
        save_png(make_grid(images[:100]), options.picture, scale=3)
    figures = judge(flat(images), *real_digits(pipeline.shape[-1], options.data_dir))
    print(
        f"{options.samples} samples by {type(pipeline.sampler).__name__} in {seconds:.1f} s: "
        f"{figures['confident']:.1%} confident (real digits held out: "
        f"{figures['confident_real']:.1%}), {figures['classes']} classes, "
        f"distance {figures['distance']:.2f}"
    )


if __name__ == "__main__":
    main()
