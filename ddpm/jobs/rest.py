"""What is still to be drawn: a sampling run that was stopped goes on with the rest.

An image depends on its seed and on the images of its batch, by the last digits. So a batch of which
a file is missing is drawn again as a whole, and its files are those of an undisturbed run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.crash import crashpoint
from ddpm.images import is_whole, save_png
from ddpm.jobs.run import Run
from ddpm.signals import GracefulStop

Batch = TypeVar("Batch")


def undrawn(
    batches: Iterable[Batch], files: Callable[[Batch], Sequence[Path]], signals: GracefulStop
) -> Iterator[tuple[int, Batch]]:
    """Number and batch, of those that lack a whole file, until a signal asks to stop."""
    for number, batch in enumerate(batches):
        if signals.wanted:
            return
        if not all(is_whole(file) for file in files(batch)):
            yield number, batch


def save_all(images: Iterable[Tensor], files: Iterable[Path]) -> None:
    """Write images, uint8 (C, H, W), each whole or not at all."""
    for image, file in zip(images, files, strict=True):
        save_png(image, file)
        crashpoint("sample.saved")


def stopped(run: Run, fabric: Fabric, signals: GracefulStop) -> bool:
    """Whether any rank was asked to stop; waits for all of them."""
    asked = torch.tensor(float(signals.wanted), device=fabric.device)
    if fabric.world_size > 1:
        asked = fabric.all_reduce(asked, reduce_op="sum")
    if asked > 0:
        run.preempted(signals.received, "the same command goes on")
    return bool(asked > 0)
