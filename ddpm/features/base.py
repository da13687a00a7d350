"""Features of pictures: the space in which sets of pictures are compared."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class Features(ABC):
    """Turns pictures into vectors.

    A score means something only together with its features, so each of them has a passport: with
    equal passports, equal pictures get equal features up to rounding.
    """

    name: ClassVar[str]  # part of the names of scores: fd_mnist
    channels: ClassVar[int | None] = None  # of the pictures; None: any
    num_classes: ClassVar[int | None] = None  # None: there are no `log_probs`

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) on any device -> float32 (B, d) on the CPU."""

    def log_probs(self, features: Tensor) -> Tensor:
        """(B, d) -> log probabilities of classes, float32 (B, K)."""
        raise NotImplementedError(f"{self.name} has no classes")

    @abstractmethod
    def passport(self) -> dict[str, object]:
        """Whatever the features depend on: name, digest of the weights (sha256, 12 digits), size
        and filter of the resize, layer, dtype."""

    def to(self, device: torch.device) -> "Features":
        """Compute there."""
        return self
