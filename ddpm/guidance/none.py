"""No guidance: the network's answer as it is, to its label where it takes one."""

from torch import Tensor

from ddpm.diffusion import GaussianDiffusion, Model, Prediction, ask
from ddpm.guidance.base import Guidance


class Unguided(Guidance):
    """The model's own belief: p(x_0 | x_t), or p(x_0 | x_t, label)."""

    def __call__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: Tensor,
        label: Tensor | None,
    ) -> Prediction:
        return diffusion.predict(ask(model, x_t, t, label), x_t, t)
