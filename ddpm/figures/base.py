"""The input and the result of drawing a figure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion
from ddpm.pipeline import Pipeline
from ddpm.samplers.base import Sampler, half_log_snr


@dataclass(frozen=True)
class Material:
    """The input of figures.

    Args:
        diffusion: the process of this run.
        images: of the data set, uint8 (N, C, H, W), held out of training if there are such.
        labels: of the images, int64 (N,).
        sampler: of this run.
        pipeline: the trained network; None: there is no checkpoint.
        names: the chosen options, such as {"schedule": "cosine"}.
        schedules: processes that differ from this run's in the schedule, by its option.
        weightings: the same for the weighting of the loss.
        samplers: all samplers, by their options, with the keys of conf/.
        labelled: whether the network takes labels.
        initial: this run's process before training, where the schedule is learned.
        first_seed: of the images that are drawn.
    """

    diffusion: GaussianDiffusion
    images: Tensor
    labels: Tensor
    sampler: Sampler
    pipeline: Pipeline | None = None
    names: dict[str, str] = field(default_factory=dict)
    schedules: dict[str, GaussianDiffusion] = field(default_factory=dict)
    weightings: dict[str, GaussianDiffusion] = field(default_factory=dict)
    samplers: dict[str, Sampler] = field(default_factory=dict)
    labelled: bool = False
    initial: GaussianDiffusion | None = None
    first_seed: int = 0

    def x_0(self, count: int) -> Tensor:
        """The first images as the process takes them, float32 (count, C, H, W)."""
        device = self.diffusion.betas.device
        return self.diffusion.codec.encode(self.images[:count].to(device))

    def shown(self, x: Tensor) -> Tensor:
        """Images for a figure: x_0 or x_t, (N, C, H, W), to uint8 (N, 1 or 3, H, W). Of other
        numbers of channels the first is shown."""
        x = x if x.shape[1] in (1, 3) else x[:, :1]
        codec = self.diffusion.codec
        return codec.show(codec.decode(x)).cpu()

    def noise(self, x_0: Tensor) -> Tensor:
        """Standard normal noise like x_0, the same in all figures."""
        generator = torch.Generator().manual_seed(self.first_seed)
        return torch.randn(x_0.shape, generator=generator).to(x_0)

    def label(self, count: int) -> Tensor | None:
        """Labels of the first images, int64 (count,), for a network that takes some."""
        return self.labels[:count].to(self.diffusion.betas.device) if self.labelled else None


@dataclass(frozen=True)
class Drawing:
    """A figure with its explanation.

    Args:
        name: of its files.
        title: in a few words.
        equation: what the figure shows, in the mathematics of matplotlib, without dollars.
        source: of the equation.
        code: where it is in this program, `file:name`.
        text: two or three sentences.
        figure: the picture.
        rows: its numbers, for CSV.
        frames: pictures of an animation, uint8 (3, H, W).
    """

    name: str
    title: str
    equation: str
    source: str
    code: str
    text: str
    figure: Figure
    rows: Sequence[dict[str, Any]]
    frames: Sequence[Tensor] = ()


class NotDrawn(Exception):
    """A figure is left out; the message says why."""


Draw = Callable[[Material], Drawing]


def trained(material: Material) -> Pipeline:
    """The trained network.

    Raises:
        NotDrawn: there is none.
    """
    if material.pipeline is None:
        raise NotDrawn("needs checkpoint=<run folder>")
    return material.pipeline


def spread(T: int, count: int) -> list[int]:
    """`count` of the numbers 0..T-1, evenly, rising; all of them if there are fewer."""
    return sorted({round(t) for t in torch.linspace(0, T - 1, count).tolist()})


def log_snr(diffusion: GaussianDiffusion, t: int) -> float:
    """log(alpha^2 / sigma^2) at t, natural logarithm; -inf for pure noise."""
    return 2 * half_log_snr(*diffusion.alpha_sigma(t))


def times(diffusion: GaussianDiffusion, ts: Sequence[int]) -> list[str]:
    """A title of two lines for each step: t and the signal-to-noise ratio."""
    return [f"t = {t}\nSNR {short(math.exp(log_snr(diffusion, t)))}" for t in ts]


def short(value: float) -> str:
    """A number in a few letters: 0.97, 22, 2e4."""
    if value == 0 or 0.01 <= value < 1000:
        return f"{value:.2g}" if value < 100 else f"{value:.0f}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def noisy(diffusion: GaussianDiffusion, x_0: Tensor, t: int, eps: Tensor) -> Tensor:
    """x_t of all images at one step t: like x_0."""
    return diffusion.q_sample(x_0, torch.full((len(x_0),), t, device=x_0.device), eps)
