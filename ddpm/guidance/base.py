"""How labels steer the network's answer: what the kinds of guidance have in common."""

from abc import ABC, abstractmethod

from torch import Tensor

from ddpm.diffusion import GaussianDiffusion, Model, Prediction


class Guidance(ABC):
    """Asks the network on behalf of a sampler, which need not know of labels.

    `labelled`: whether a label steers it even where the network takes none.
    """

    labelled = False

    @abstractmethod
    def __call__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: Tensor,
        label: Tensor | None,
    ) -> Prediction:
        """What is believed of x_0, given x_t (B, C, H, W), t (B,) and label (B,) or None."""

    def to(self, device: object) -> "Guidance":
        """The same, with what it holds of networks on a device."""
        return self
