"""How labels steer a prediction: the interface of guidance."""

from abc import ABC, abstractmethod

from torch import Tensor

from ddpm.denoising import Denoiser, Prediction


class Guidance(ABC):
    """Turns a network's predictions into the one that a sampler uses.

    `labelled`: whether it uses labels even if the network takes none.
    """

    labelled = False

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor) -> Prediction:
        """Prediction for x_t (B, C, H, W) at t (B,), given `denoiser.label`, (B,) or None."""

    def to(self, device: object) -> "Guidance":
        """The same guidance with its own networks, if any, on a device."""
        return self
