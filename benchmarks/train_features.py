"""Train the small classifiers of features=digits, mnist and fashion_mnist, and write their card.

    python benchmarks/train_features.py --data data

On one core about six minutes. It writes `ddpm/features/weights/*.safetensors`, enters their digests
in `ddpm/features/small.py`, and writes `ddpm/features/weights/README.md`: how often they are right,
and which blemishes of pictures they see. Another machine gives other digits in the last places,
hence other digests: ship the files, not the recipe. --card: measure the files that are there.
"""

import argparse
import hashlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import save
from torch import Tensor

from ddpm.features import classifier, small
from ddpm.features.classifier import train
from ddpm.runner.config.build import build

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "ddpm" / "features" / "small.py"
MODELS = (small.Digits, small.MNIST, small.FashionMNIST)
REFERENCE, SAMPLE = 10_000, 5_000  # pictures, or all where there are fewer


def pictures(name: str, folder: str, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """Of a data set as conf/data has it: uint8 (N, 1, H, W) and labels, in an order of seed 0."""
    node: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "data" / f"{name}.yaml"))
    node.pop("defaults", None)  # Hydra's
    data = build(node | {"data_dir": folder}, "data")
    data = data.held_out() if held_out else data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data.__getitems__(order.tolist())


def levels(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


def noisy(strength: float) -> Callable[[Tensor], Tensor]:
    def add(images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return levels(images + strength * torch.randn(images.shape, generator=generator))

    return add


def blurred(images: Tensor) -> Tensor:
    """By the binomial filter of five taps, along both axes."""
    taps = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    return levels(F.conv2d(images.float(), torch.outer(taps, taps)[None, None], padding=2))


BLEMISHES: dict[str, Callable[[Tensor], Tensor]] = {
    "none: the floor": lambda images: images,
    "noise of 8 grey levels": noisy(8),
    "noise of 32": noisy(32),
    "blur": blurred,
    "every pixel 20 levels brighter": lambda images: levels(images + 20.0),
    "contrast 0.8": lambda images: levels(127.5 + 0.8 * (images - 127.5)),
    "mirrored": lambda images: images.flip(3),
}


def distance(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of two sets of features (n, d), in float64."""
    a, b = a.double(), b.double()
    (values, vectors), other = torch.linalg.eigh(a.T.cov()), b.T.cov()
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return (
        (a.mean(0) - b.mean(0)).square().sum() + values.sum() + other.trace() - 2 * cross
    ).item()


def measure(features: small.Small, folder: str) -> dict[str, float]:
    """How often the classifier is right, and the distances of spoiled held-out pictures."""
    images, _ = pictures(features.name, folder)
    held_out, truth = pictures(features.name, folder, held_out=True)
    found = {
        "accuracy": (features.log_probs(features(held_out)).argmax(1) == truth)
        .double()
        .mean()
        .item()
    }
    reference, spoiled = features(images[:REFERENCE]), held_out[:SAMPLE]
    sets = {what: spoil(spoiled) for what, spoil in BLEMISHES.items()}
    sets["one class missing"] = spoiled[truth[:SAMPLE] != 3]
    few = spoiled[:100]
    sets["100 pictures, repeated"] = few.repeat(-(-len(spoiled) // 100), 1, 1, 1)[: len(spoiled)]
    sets["the training pictures themselves"] = images[: len(spoiled)]
    return found | {what: distance(features(some), reference) for what, some in sets.items()}


CARD = """# Small classifiers

Weights of `features=digits`, `mnist` and `fashion_mnist`. Written by
`benchmarks/train_features.py`; do not edit.

Each is a classifier of its data set's ten classes, and the features are its last hidden layer,
divided by the root mean square over the training pictures: three 3x3 convolutions (16, 32, 64
channels), each followed by ReLU and 2x2 max pooling, a hidden layer, and ten logits
(`ddpm/features/classifier.py`). Trained with Adam on batches of {batch}, at a learning rate that
falls from {lr:g} to 0 along a cosine, for {epochs} passes but at least {steps} steps, with seed 0
and without augmentation. Pictures of another size are resized to the judge's by a bicubic filter.

| features | size | width | parameters | bytes | right | SHA-256 |
|---|---|---|---|---|---|---|
{models}

Trained on the training split of `conf/data/<name>.yaml`, and measured on its held-out pictures:
the test split, for digits the tenth that `data.holdout` keeps apart.

## What they see

Frechet distance of spoiled held-out pictures ({sample:,}, or all there are) from {reference:,}
training pictures (or all), as a multiple of the floor, which the first row gives: the distance
of the same pictures, unspoiled.

| blemish | {names} |
|---|{lines}
{blemishes}

- They are sensitive to what distinguishes the classes, and much less to what does not, such as a
  brighter background. How much less depends on the seed of the training, so scores compare only
  where the digests of the weights are equal.
- They have seen the training pictures, so a generator that copies those scores better than real
  pictures do.
- A generator guided by a classifier of the same kind is judged by its twin.
- They know nothing between the classes: they see a missing class, but hardly whether a 3 is well
  drawn.
"""


def card(measured: dict[str, dict[str, float]]) -> str:
    models, blemishes = [], []
    for features in (model() for model in MODELS):
        size, file = features.size, small.FOLDER / f"{features.name}.safetensors"
        count = sum(p.numel() for p in features.net.parameters())
        right = f"{measured[features.name]['accuracy']:.1%}"
        cells = f"{size}x{size}", features.width, f"{count:,}", f"{file.stat().st_size:,}", right
        models.append(
            f"| `{features.name}` | {' | '.join(map(str, cells))} | `{features.digest}` |"
        )
    floors = {
        name: next(v for k, v in row.items() if "floor" in k) for name, row in measured.items()
    }
    for what in list(measured["digits"])[1:]:
        values = ((row[what], floors[name]) for name, row in measured.items())
        cells = [f"{v:.2f}" if "floor" in what else f"{v / floor:.1f} x" for v, floor in values]
        blemishes.append(f"| {what} | {' | '.join(cells)} |")
    return CARD.format(
        models="\n".join(models),
        blemishes="\n".join(blemishes),
        names=" | ".join(f"`{name}`" for name in measured),
        lines="---|" * len(measured),
        batch=classifier.BATCH,
        lr=classifier.LR,
        epochs=classifier.EPOCHS,
        steps=classifier.STEPS,
        sample=SAMPLE,
        reference=REFERENCE,
    )


def write(model: type[small.Small], folder: str) -> None:
    """Train a classifier, write its file, and enter its digest in the source."""
    images, labels = pictures(model.name, folder)
    net = train(images, labels, size=model.size, width=model.width, num_classes=10)
    content = save(net.state_dict())
    small.FOLDER.mkdir(exist_ok=True)
    (small.FOLDER / f"{model.name}.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    SOURCE.write_text(SOURCE.read_text().replace(f'"{model.sha256}"', f'"{digest}"'))
    model.sha256 = digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", help="folder of the data sets")
    parser.add_argument("--card", action="store_true", help="train nothing: write the card again")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = {}
    for model in MODELS:
        start = time.perf_counter()
        if not arguments.card:
            write(model, arguments.data)
        measured[model.name] = measure(model(), arguments.data)
        print(f"{model.name}: {time.perf_counter() - start:.0f} s, {measured[model.name]}")
    (small.FOLDER / "README.md").write_text(card(measured))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    main()
