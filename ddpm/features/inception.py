"""The Inception network of the FID (Heusel et al. 2017, arXiv:1706.08500), from torch-fidelity."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.errors import InputError
from ddpm.features import files
from ddpm.features.network import NetworkFeatures
from ddpm.limits.parts import check_limits

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FILE = "weights-inception-2015-12-05-6726825d.pth"
REMEDY = (
    f"The file is {FILE} (96 MB), from the release v0.2.0 of\n"
    "github.com/toshas/torch-fidelity; pytorch-fid has the same as pt_inception-2015-12-05-..."
)
SIZE = 299


class Inception(NetworkFeatures):
    """The 2,048 numbers after the last pooling. Grey pictures get three equal channels.

    Only with this file and the legacy resize is a Frechet distance called FID: the other ways have
    other names, inception_clean and inception_other.

    Args:
        weights: the file of torch-fidelity, which pytorch-fid has, too.
        resize: legacy, the bilinear one of TensorFlow 1 that defines the FID; or clean, Pillow's
            bicubic filter without rounding (Parmar et al. 2022, arXiv:2104.11222).
        sha256: of the file.

    Raises:
        InputError: the file is missing or another one, or torch-fidelity is missing.
    """

    num_classes = 1008
    layer = "2048"
    size = SIZE
    colour = True
    batch = 32

    def __init__(
        self, *, weights: str | None = None, resize: str = "legacy", sha256: str = SHA256
    ) -> None:
        check_limits("features", resize=resize)
        if weights is None:
            raise InputError(f"features.weights: features=inception needs a file.\n{REMEDY}")
        extractor, interpolate = _library()
        tensors, digest = files.read(Path(weights).expanduser(), sha256, REMEDY)
        *layers, head = _network(extractor, tensors).children()
        super().__init__(nn.Sequential(Center(), *layers, nn.Flatten()), digest)
        self.head: Tensor = head.weight  # type: ignore[assignment]
        suffix = "" if resize == "legacy" else f"_{resize}"
        self.name = f"inception{suffix}" if sha256 == SHA256 else "inception_other"
        self.resize, self._interpolate = resize, interpolate

    def resized(self, images: Tensor) -> Tensor:
        if self.resize == "clean":
            return super().resized(images)
        return self._interpolate(images.float(), size=(SIZE, SIZE), align_corners=False)

    def logits(self, features: Tensor) -> Tensor:
        """Without the bias, as the first Inception Score and torch-fidelity have them."""
        return features @ self.head.T

    def to(self, device: torch.device) -> "Inception":
        self.head = self.head.to(device)
        super().to(device)
        return self


class Center(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - 128) / 128


def _library() -> tuple[Any, Any]:
    """The network's class, and TensorFlow's resize."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torch_fidelity.interpolate_compat_tensorflow import (
            interpolate_bilinear_2d_like_tensorflow1x,
        )
    except ImportError:
        raise InputError(
            "features=inception: its network comes from torch-fidelity, which is not installed.\n"
            "pip install -e '.[fid]' (or pip install torch-fidelity)"
        ) from None
    return FeatureExtractorInceptionV3, interpolate_bilinear_2d_like_tensorflow1x


def _network(extractor: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """The library would unpickle the file: it is given tensors that were read safely."""
    file = io.BytesIO()
    torch.save(tensors, file)
    file.seek(0)
    try:
        return extractor("inception", ["2048"], feature_extractor_weights_path=file)
    except (RuntimeError, TypeError, AttributeError):
        raise InputError("features.weights: not the weights of the FID's Inception.") from None
