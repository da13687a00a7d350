"""What an evaluation will cost: evaluations of the network per picture, and seconds."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddpm.pipeline import Pipeline

TIMED = 2  # calls that are timed, after one that warms up


def evaluations(pipeline: Pipeline, labels: Sequence[int] | None) -> int:
    """How often the sampler asks the network for one picture: guidance without a classifier asks
    twice in a step, as does Heun's method. Counted with a network that predicts zeros."""
    counter = _Counter(2 if pipeline.diffusion.objective.learned_variance else 1)
    counted = Pipeline(
        counter,
        pipeline.diffusion,
        pipeline.sampler,
        pipeline.shape,
        guidance=pipeline.guidance,
        num_classes=pipeline.num_classes,
        device=pipeline.device,
    )
    for _ in counted.trajectory([0], None if labels is None else labels[:1]):
        pass
    return counter.count


class _Counter(torch.nn.Module):
    """Zeros of the right shape; counts the pictures that it was asked for."""

    def __init__(self, times_channels: int) -> None:
        super().__init__()
        self.times_channels, self.count = times_channels, 0

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.count += len(x_t)
        return torch.zeros_like(x_t).repeat(1, self.times_channels, 1, 1)


def seconds_per_picture(call: Callable[[], object], pictures: int, device: torch.device) -> float:
    """Seconds of one call on a batch, for each picture in it."""
    call()
    _wait(device)
    began = time.perf_counter()
    for _ in range(TIMED):
        call()
    _wait(device)
    return (time.perf_counter() - began) / TIMED / pictures


def network_call(
    pipeline: Pipeline, batch: int, labels: Sequence[int] | None
) -> Callable[[], object]:
    """One evaluation of the network on a batch of noise."""
    x_t = torch.zeros(batch, *pipeline.shape, device=pipeline.device)
    label = pipeline.to_labels(None if labels is None else [labels[0]] * batch)
    denoiser, t = pipeline.denoiser(label), torch.zeros(batch, dtype=torch.int64)
    t = t.to(pipeline.device)

    @torch.no_grad()
    def call() -> object:
        return denoiser.predict(x_t, t, label)

    return call


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
