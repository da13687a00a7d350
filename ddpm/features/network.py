"""The common part of features that are computed by a network."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.errors import InputError
from ddpm.features.base import Features


class NetworkFeatures(Features):
    """A layer of a trained network, in float32.

    The pictures of a batch do not influence each other, and `batch` of them are computed at once,
    so a call may hold as many as the memory does.

    Args:
        net: (B, C, size, size) float32 of values from 0 to 255 -> (B, d).
        digest: SHA-256 of the weights.
    """

    size: int  # pictures of another size are resized to it
    resize = "bicubic"
    layer: str
    colour = False  # grey pictures get three equal channels
    batch = 64

    def __init__(self, net: nn.Module, digest: str) -> None:
        self.net = net.eval().requires_grad_(False)
        self.digest = digest
        self.device = torch.device("cpu")

    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise InputError(
                f"features={self.name}: pictures must be uint8 (B, C, H, W), not {images.dtype} "
                f"{tuple(images.shape)}."
            )
        self.check_channels(images.shape[1])
        with exact(self.device):
            parts = [self._part(part.to(self.device)) for part in images.split(self.batch)]
        return torch.cat(parts)

    def _part(self, images: Tensor) -> Tensor:
        if self.colour:
            images = images.expand(-1, 3, -1, -1)
        return self.net(self.resized(images)).float().cpu()

    def resized(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, size, size), of values from 0 to 255."""
        return bicubic(images, self.size)

    def log_probs(self, features: Tensor) -> Tensor:
        with exact(self.device):
            logits = self.logits(features.to(self.device)).float().cpu()
        return logits.log_softmax(1)

    def logits(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, K)."""
        raise NotImplementedError(f"{self.name} has no classes")

    def passport(self) -> dict[str, object]:
        return {
            "name": self.name,
            "digest": self.digest[:12],
            "size": self.size,
            "resize": self.resize,
            "layer": self.layer,
            "dtype": "float32",
        }

    def to(self, device: torch.device) -> "NetworkFeatures":
        self.device = torch.device(device)
        self.net.to(self.device)
        return self


def bicubic(images: Tensor, size: int) -> Tensor:
    """uint8 (B, C, H, W) -> float32 (B, C, size, size) by Pillow's bicubic filter, cut to 0..255
    but not rounded: the resize of Parmar et al. 2022 (arXiv:2104.11222)."""
    pixels = images.float()
    if images.shape[2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 255)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, no TF32, and deterministic kernels."""
    precision = torch.get_float32_matmul_precision()
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False), flags:
            torch.set_float32_matmul_precision("highest")
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
