"""Small classifiers that come with this program; their card is `weights/README.md`."""

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ddpm.features import files
from ddpm.features.classifier import LAYER, Classifier
from ddpm.features.network import NetworkFeatures

FOLDER = Path(__file__).parent / "weights"


class Small(NetworkFeatures):
    """The last hidden layer of a classifier of ten classes of grey pictures."""

    channels = 1
    num_classes = 10
    layer = LAYER
    batch = 1000
    width: ClassVar[int]
    sha256: ClassVar[str]
    net: Classifier

    def __init__(self) -> None:
        path = FOLDER / f"{self.name}.safetensors"
        remedy = "It is part of this program: install that again."
        tensors, digest = files.read(path, self.sha256, remedy)
        net = Classifier(channels=1, size=self.size, width=self.width, num_classes=10)
        files.fill(net, tensors, "the small classifier")
        super().__init__(net, digest)

    def logits(self, features: Tensor) -> Tensor:
        return self.net.logits(features)


class Digits(Small):
    """A classifier of scikit-learn's digits, 16x16."""

    name, size, width = "digits", 16, 64
    sha256 = "e3c5a922649abbbed6334cf9df86ec7cf14b36e92a697d6d4dceee2763e6c2f9"


class MNIST(Small):
    """A classifier of MNIST's digits, padded to 32x32."""

    name, size, width = "mnist", 32, 128
    sha256 = "06bd84dd51acdebf56a42b003b44bbd6e40ebb6cdd4cfaa9d8c430e3ec081a31"


class FashionMNIST(Small):
    """A classifier of FashionMNIST's articles, padded to 32x32."""

    name, size, width = "fashion_mnist", 32, 128
    sha256 = "ae948754654e14eb92e12350577ba703b4fd84927771a2defd9d3e941e15a201"
