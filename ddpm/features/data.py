"""Features of any data set with labels: a small classifier, trained once on its pictures."""

import logging
import time
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ddpm.data.base import ImageData
from ddpm.data.cache import writing
from ddpm.errors import InputError
from ddpm.features import files
from ddpm.features.base import Features
from ddpm.features.classifier import BATCH, LAYER, Classifier, accuracy, num_steps, train
from ddpm.features.network import NetworkFeatures
from ddpm.runner.safe_io import atomic

RECIPE = 2  # raise it when the same pictures give another network
SIZES = 8, 64  # the smallest and the largest pictures that the network sees
WIDTH = 128
TIMED = 3  # steps that are timed, to say how long the training will take
ASIDE = 10  # every tenth picture is not trained on: the accuracy is measured on them

logger = logging.getLogger(__name__)


class OwnData(Features):
    """The last hidden layer of a classifier that is trained on this data set at the first use.

    It stays in the cache of the data. Another machine trains another one, so scores compare only
    where the digests are equal.

    Args:
        data: with classes; its pictures are read at the first use.
    """

    name = "data"

    def __init__(self, data: ImageData) -> None:
        self.data = data
        self.channels, self.num_classes = data.channels, data.num_classes
        self._device = torch.device("cpu")
        self.size = min(max(*data.shape[1:], SIZES[0]), SIZES[1])

    def __call__(self, images: Tensor) -> Tensor:
        return self._trained(images)

    def log_probs(self, features: Tensor) -> Tensor:
        return self._trained.log_probs(features)

    def passport(self) -> dict[str, object]:
        return self._trained.passport() | {"trained_on": self.data.fingerprint[:12]}

    def to(self, device: torch.device) -> "OwnData":
        self._device = device
        if "_trained" in vars(self):
            self._trained.to(device)
        return self

    def check_channels(self, channels: int) -> None:
        super().check_channels(channels)
        self._shape()

    def stand_in(self) -> "Trained | None":
        if self.file.exists():
            return None
        net = Classifier(channels=self.data.channels, **self._shape())
        untrained = Trained(net, "", self.data.channels, self.size, net.head.out_features)
        untrained.to(self._device)
        return untrained

    def seconds_to_train(self) -> float:
        if self.file.exists():
            return 0.0
        images, labels = self.data.__getitems__(range(min(BATCH, len(self.data))))
        shape, began = self._shape(), 0.0
        for steps in (1, 1 + TIMED):  # the first run warms up
            began = time.perf_counter()
            train(images, labels, **shape, steps=steps)
        each = (time.perf_counter() - began) / (1 + TIMED)
        return each * num_steps(len(self.data) - len(self.data) // ASIDE)

    @cached_property
    def file(self) -> Path:
        """The file of the trained network."""
        stem = f"features-{self.data.name}-{self.data.fingerprint[:16]}-{RECIPE}"
        return self.data.data_dir / "cache" / f"{stem}.safetensors"

    @cached_property
    def _trained(self) -> "Trained":
        """The network, read from the cache or trained.

        Raises:
            InputError: the data have no classes, or the cache cannot be written.
        """
        shape = self._shape()
        self.num_classes = shape["num_classes"]
        with writing(self.file.parent, f"features-{self.data.name}"):
            if not self.file.exists():
                atomic.write(self.file, save(self._train(**shape).state_dict()))
        net = Classifier(channels=self.data.channels, **shape)
        tensors, digest = files.read(self.file, None, "Remove it, and it is made again.")
        files.fill(net, tensors, f"a classifier of data={self.data.name}")
        made = Trained(net, digest, self.data.channels, self.size, self.num_classes)
        made.to(self._device)
        return made

    def _shape(self) -> dict[str, int]:
        """Size, width and classes of the network.

        Raises:
            InputError: the data have no classes.
        """
        if not self.data.class_names or len(self.data.class_names) < 2:
            raise InputError(
                f"features=data: data={self.data.name} has no classes to train a classifier on.\n"
                "Choose features=efficientnet (pip install -e '.[efficientnet]')."
            )
        return {"size": self.size, "width": WIDTH, "num_classes": len(self.data.class_names)}

    def _train(self, **shape: int) -> Classifier:
        images, labels = self.data.__getitems__(range(len(self.data)))
        aside = torch.arange(len(labels)) % ASIDE == ASIDE - 1
        logger.warning("features=data: training a classifier on data=%s, once", self.data.name)
        net = train(images[~aside], labels[~aside], **shape)
        share = accuracy(net, images[aside], labels[aside], self.size)
        logger.warning(
            "features=data: trained a classifier on %s pictures of data=%s; it finds the class of "
            "%.1f %% of %s others. Scores by it compare on this machine only: %s",
            *(f"{(~aside).sum():,}", self.data.name, 100 * share, f"{aside.sum():,}", self.file),
        )
        return net


class Trained(NetworkFeatures):
    """The features of a classifier that is in memory."""

    name, layer, batch = "data", LAYER, 1000
    net: Classifier

    def __init__(
        self, net: Classifier, digest: str, channels: int, size: int, num_classes: int
    ) -> None:
        super().__init__(net, digest)
        self.channels, self.size, self.num_classes = channels, size, num_classes

    def logits(self, features: Tensor) -> Tensor:
        return self.net.logits(features)
