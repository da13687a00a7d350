"""How good are the digits of a run? Judged by a classifier that only knows the real ones.

    python benchmarks/digits_quality.py outputs/train/unet-digits/<time>
    python benchmarks/digits_quality.py <run> --sampler ddpm dpm_solver --picture digits.png
    python benchmarks/digits_quality.py <run of data.conditional=true> --guidance-scale 0 1 2 4

An SVC is trained on the 1,797 real digits at the size of the run. Of the samples it tells
  asked       how many it takes for the digit they were asked to be (of a conditional run),
  confident   how many it gives a probability of 0.8 or more (beside: of real digits held out),
  classes     how many of the ten digits occur among those,
  distance    the median distance to the nearest real digit, relative to the median distance of a
              real digit to its nearest neighbour: far below 1 would mean copies.
"""

import argparse
import os
import signal
import time
import warnings

import numpy as np
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC
from torch import Tensor

from ddpm import Pipeline
from ddpm.data.digits import Digits
from ddpm.guidance.base import Guidance
from ddpm.guidance.classifier import from_checkpoint
from ddpm.guidance.classifier_free import ClassifierFree
from ddpm.images import make_grid, save_png
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.samplers.dpm_solver import DPMSolver
from ddpm.samplers.heun import Heun

SAMPLERS = {
    "run": lambda: None,
    "respaced": lambda: DDPM(steps=50, variance="auto"),
    "ddpm": lambda: DDPM(steps=None, variance="auto"),
    "ddim": lambda: DDIM(steps=50, eta=0.0),
    "dpm_solver": lambda: DPMSolver(steps=15, order=2, spacing="log_snr"),
    "dpm_solver_stochastic": lambda: DPMSolver(
        steps=15, order=2, stochastic=True, spacing="log_snr"
    ),
    "heun": lambda: Heun(steps=18),
}
DIGITS = range(10)
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
        resize_mode="resize",
        background=0,
        flip=False,
    )
    images, labels = data.__getitems__(list(range(len(data))))
    return flat(images), labels.numpy()


class Judge:
    """An SVC that knows the real digits, and what it makes of samples."""

    def __init__(self, real: np.ndarray, labels: np.ndarray) -> None:
        self.real = real
        self.classifier = SVC(probability=True, random_state=0)
        held_out = cross_val_predict(self.classifier, real, labels, cv=5, method="predict_proba")
        self.confident_real = (held_out.max(1) >= CONFIDENT).mean()
        self.accuracy_real = (held_out.argmax(1) == labels).mean()
        self.classifier.fit(real, labels)
        self.neighbours = NearestNeighbors(n_neighbors=2).fit(real)
        self.among_real = np.median(self.neighbours.kneighbors(real)[0][:, 1])

    def __call__(self, samples: np.ndarray, asked: np.ndarray | None) -> str:
        """The figures the head of this file explains."""
        probabilities = self.classifier.predict_proba(samples)
        found, confident = probabilities.argmax(1), probabilities.max(1) >= CONFIDENT
        to_real = np.median(self.neighbours.kneighbors(samples, n_neighbors=1)[0])
        words = [] if asked is None else [f"{(found == asked).mean():.1%} as asked"]
        words += [
            f"{confident.mean():.1%} confident",
            f"{len(set(found[confident]))} classes",
            f"distance {to_real / self.among_real:.2f}",
        ]
        return ", ".join(words)


def guidances(options: argparse.Namespace) -> list[tuple[str, Guidance | None]]:
    """What the samples are to be guided by, in turn, with a name for each."""
    if options.classifier:
        scales = options.guidance_scale or [1.0]
        return [
            (f"classifier, scale {s:g}", from_checkpoint(options.classifier, s)) for s in scales
        ]
    if options.guidance_scale:
        return [(f"scale {s:g}", ClassifierFree(scale=s)) for s in options.guidance_scale]
    return [("the run's guidance", None)]


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)  # of SVC(probability=True)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1000, help="of the first sample")
    parser.add_argument("--sampler", choices=SAMPLERS, nargs="+", default=["run"])
    parser.add_argument(
        "--guidance-scale", type=float, nargs="+", help="ask for all digits in turn"
    )
    parser.add_argument("--classifier", help="guide by this run of job=train_classifier")
    parser.add_argument("--data-dir", default=os.environ.get("DDPM_DATA", "data"))
    parser.add_argument("--picture", help="also write a grid of the first 100 here")
    options = parser.parse_args()

    judge = None
    for name in options.sampler:
        for words, guidance in guidances(options):
            pipeline = Pipeline.from_checkpoint(
                options.run, sampler=SAMPLERS[name](), guidance=guidance
            )
            if judge is None:
                judge = Judge(*real_digits(pipeline.shape[-1], options.data_dir))
                print(
                    f"real digits, held out: {judge.accuracy_real:.1%} right, "
                    f"{judge.confident_real:.1%} confident"
                )
            asked = None if guidance is None else DIGITS
            began = time.perf_counter()
            images = pipeline.sample(
                options.samples, seed=options.seed, labels=asked, batch_size=options.samples
            )
            seconds = time.perf_counter() - began
            if options.picture:
                save_png(make_grid(images[:100]), options.picture, scale=3)
            labels = None if asked is None else np.arange(options.samples) % len(DIGITS)
            print(
                f"{options.samples} samples by {type(pipeline.sampler).__name__}, {words}, "
                f"in {seconds:.1f} s: {judge(flat(images), labels)}",
                flush=True,
            )


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    main()
