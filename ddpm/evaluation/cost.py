"""How long an evaluation will take."""

import time
from collections.abc import Callable, Sequence

import torch

from ddpm.pipeline import Pipeline

TIMED = 2  # calls that are timed, after one that warms up


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
    denoiser = pipeline.denoiser(label)
    t = torch.zeros(batch, dtype=torch.int64, device=pipeline.device)

    @torch.no_grad()
    def call() -> object:
        return denoiser.predict(x_t, t, label)

    return call


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
