"""Autoguidance: extrapolate from a weaker network's prediction to the network's own."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from ddpm.denoising import Denoiser, Prediction, clipped, network_output, predict_x_0
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.guidance.base import Guidance, Interval, nearest_timestep, within_interval
from ddpm.limits.parts import check_limits
from ddpm.pretrained import load_network


@dataclass(eq=False)
class Autoguidance(Guidance):
    """x_0 = weak + scale (own - weak): Karras et al. 2024 (arXiv:2406.02507), Eq. 3. It needs no
    labels; both networks get the label, if they take one.

    The weaker network should make the same kind of errors, only larger: a smaller network, or an
    earlier checkpoint, trained on the same data. It may have another schedule and objective: it is
    evaluated at its own step with the nearest noise level. A learned variance is the network's own.

    Args:
        weak: the weaker network.
        diffusion: the process that it was trained on.
        scale: 1: no guidance; 0: the weaker network alone.
        interval: of noise levels sigma / alpha at which to guide, see `base.within_interval`.
        takes_labels: whether the weaker network was trained with labels.
    """

    weak: nn.Module
    diffusion: GaussianDiffusion
    scale: float
    interval: Interval = None
    takes_labels: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_limits("guidance", scale=self.scale, interval=self.interval)

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Tensor) -> Prediction:
        def plain() -> Prediction:
            return denoiser.predict(x_t, t, denoiser.label)

        if self.scale == 1:
            return plain()
        return within_interval(
            self.interval, denoiser.diffusion, t, plain, lambda: self.guided(denoiser, x_t, t)
        )

    def guided(self, denoiser: Denoiser, x_t: Tensor, t: Tensor) -> Prediction:
        """The mixture of both predictions, which is clipped, not each of them."""
        diffusion, label = denoiser.diffusion, denoiser.label
        own = network_output(diffusion, denoiser.model, x_t, t, label)
        own_x_0, fraction = predict_x_0(diffusion, own, x_t, t)
        weak_t = nearest_timestep(self.diffusion, diffusion, t)
        weak_label = label if self.takes_labels else None
        weak = network_output(self.diffusion, self.weak, x_t, weak_t, weak_label)
        weak_x_0, _ = predict_x_0(self.diffusion, weak, x_t, weak_t)
        x_0 = weak_x_0 + self.scale * (own_x_0 - weak_x_0)
        return clipped(diffusion, x_0, x_t, t, fraction)


def from_checkpoint(
    weak: str, scale: float = 2.0, weights: str = "ema", interval: Interval = None
) -> Autoguidance:
    """Guidance by a weaker network of job=train.

    Args:
        weak: the run folder, or a checkpoint in it.
        scale: guidance scale, at least 0.
        weights: of the weaker network: "ema" or "model".
        interval: of noise levels at which to guide; None: all.

    Raises:
        InputError: it is no whole checkpoint of such a run.
    """
    try:
        network, diffusion, hparams, _ = load_network(weak, weights)
    except InputError as error:
        text = str(error).replace("checkpoint=", "guidance.weak=", 1)
        raise InputError(text.replace("job.weights=", "guidance.weights=", 1)) from None
    takes_labels = bool(hparams["data"].get("conditional"))
    return Autoguidance(network, diffusion, scale, interval, takes_labels=takes_labels)
