"""No guidance."""

from torch import Tensor

from ddpm.denoising import Denoiser, Prediction
from ddpm.guidance.base import Guidance


class Unguided(Guidance):
    """The network's own prediction: p(x_0 | x_t), or p(x_0 | x_t, label)."""

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor) -> Prediction:
        return denoiser.predict(x_t, t, denoiser.label)
