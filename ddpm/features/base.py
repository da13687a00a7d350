"""Features of pictures: the space in which sets of pictures are compared."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ddpm.errors import InputError


class Features(ABC):
    """Turns pictures into vectors.

    A score means something only together with its features, so each of them has a passport: with
    equal passports, equal pictures get equal features up to rounding.
    """

    name: str  # part of the names of scores: fd_mnist
    channels: int | None = None  # of the pictures; None: 1 or 3
    num_classes: int | None = None  # None: there are no `log_probs`

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

    def check_channels(self, channels: int) -> None:
        """Call it before anything is computed.

        Raises:
            InputError: these features are not for pictures with so many channels.
        """
        allowed = (1, 3) if self.channels is None else (self.channels,)
        if channels not in allowed:
            raise InputError(
                f"features={self.name}: for pictures with {' or '.join(map(str, allowed))} "
                f"channel(s), these have {channels}.\n"
                "For grey and for colour pictures: features=efficientnet, inception, data."
            )

    def stand_in(self) -> "Features | None":
        """Untrained features of the same cost, if the first call has to train these; else None."""
        return None

    def seconds_to_train(self) -> float:
        """About how long the first call trains."""
        return 0.0

    def to(self, device: torch.device) -> "Features":
        """Compute on this device."""
        return self
