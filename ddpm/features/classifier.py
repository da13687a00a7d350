"""The small classifier whose last hidden layer judges small pictures, and how it is trained."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ddpm.features.network import bicubic

STEPS, EPOCHS = 600, 3  # whichever takes longer
BATCH, LR = 128, 2e-3
LAYER = "hidden"


class Classifier(nn.Module):
    """Three convolutions with pooling, a hidden layer, and one logit a class.

    The hidden layer is divided by its root mean square over the pictures that the network was
    trained on, so that kernel distances of all such networks have one scale.

    Args:
        width: of the hidden layer.
    """

    def __init__(self, *, channels: int, size: int, width: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for above, below in ((channels, 16), (16, 32), (32, 64)):
            # After the maximum ReLU has a quarter of the work, to the same result.
            layers += [nn.Conv2d(above, below, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        hidden = nn.Linear(64 * (size // 8) ** 2, width)
        self.body = nn.Sequential(*layers, nn.Flatten(), hidden, nn.ReLU())
        self.head = nn.Linear(width, num_classes)
        self.register_buffer("rms", torch.ones(()))
        self.rms: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, size, size) of values from 0 to 255 -> features (B, width)."""
        return self.body(pixels / 127.5 - 1) / self.rms

    def logits(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, num_classes)."""
        return self.head(features * self.rms)


def num_steps(images: int) -> int:
    """The training steps for so many images."""
    return max(STEPS, math.ceil(EPOCHS * images / BATCH))


def train(
    images: Tensor,
    labels: Tensor,
    *,
    size: int,
    width: int,
    num_classes: int,
    steps: int | None = None,
) -> Classifier:
    """Adam on batches of 128, with a learning rate that falls from 2e-3 to 0 along a cosine.

    It is a function of its arguments up to rounding, and leaves the global generators alone.

    Args:
        images: uint8 (N, C, H, W).
        labels: (N,) int64.
        steps: None: as many as the number of images needs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"channels": images.shape[1], "size": size, "width": width}
        net = Classifier(**shape, num_classes=num_classes)
    net.to(memory_format=torch.channels_last)  # a fifth to a half less time on a CPU
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    steps = num_steps(len(images)) if steps is None else steps
    order = torch.empty(0, dtype=torch.int64)
    for step in tqdm(range(steps), "training a classifier", disable=None, delay=1):
        if len(order) < min(BATCH, len(images)):
            order = torch.randperm(len(images), generator=generator)
        batch, order = order[:BATCH], order[BATCH:]
        optimizer.param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.enable_grad():
            logits = net.logits(net(bicubic(images[batch], size)))
            loss = F.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    net.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    net.rms.copy_(_features(net, images, size).square().mean().sqrt())
    return net


def accuracy(net: Classifier, images: Tensor, labels: Tensor, size: int) -> float:
    """The share of pictures whose class the network finds."""
    found = net.logits(_features(net, images, size)).argmax(1)
    return (found == labels).double().mean().item()


def _features(net: Classifier, images: Tensor, size: int) -> Tensor:
    with torch.inference_mode():
        return torch.cat([net(bicubic(part, size)) for part in images.split(1000)])
