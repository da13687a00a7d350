"""What is still to be drawn: a sampling run that was stopped goes on with the rest.

An image depends on its seed and on the images of its batch, by the last digits. So a batch of which
a file is missing is drawn again as a whole, and its files are those of an undisturbed run.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.errors import InputError
from ddpm.images import is_whole, save_png
from ddpm.runner.distributed.signals import GracefulStop
from ddpm.runner.execution.run import Run
from ddpm.runner.runs import run_dir
from ddpm.runner.safe_io.failpoint import crashpoint

SEEN_AFTER = 30  # seconds that a file server may keep an old answer

Batch = TypeVar("Batch")


def mine(batches: Sequence[Batch], fabric: Fabric) -> Sequence[Batch]:
    """The batches that this rank draws: whole ones of those that one process would draw, so that
    its images are the same to the byte."""
    return batches[fabric.global_rank :: fabric.world_size]


def check_shares(run: Run, fabric: Fabric, batches: int) -> None:
    """See that all processes write into the folder of the first; call it when the run has begun.

    Raises:
        InputError: on another machine the folder is another, or not there.
    """
    if fabric.world_size == 1:
        return
    run_id = fabric.broadcast(run.plan.hparams["run_id"])
    blind = torch.tensor(float(not _shows(run.dir, run_id)), device=fabric.device)
    if fabric.all_reduce(blind, reduce_op="sum") > 0:
        raise InputError(
            f"output_dir={run.dir}: not all processes see the folder that the first one made. "
            "Each writes images of its own there, so all machines must share it (NFS, Lustre, ...)."
        )
    if batches < fabric.world_size:
        run.say(
            f"note     {batches} batches for {fabric.world_size} processes: the others have "
            "nothing to draw; a smaller job.batch_size shares the work out"
        )


def _shows(folder: Path, run_id: str) -> bool:
    """Whether the folder is that of this run; on a network it may take a while to be seen."""
    deadline = time.monotonic() + SEEN_AFTER
    while True:
        with contextlib.suppress(InputError):
            if run_dir.read_config(folder)["run_id"] == run_id:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


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
