"""Batches on their way from the data set to the device, read ahead by other processes if asked."""

import logging
import signal
import threading
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddpm.data.base import ImageData
from ddpm.errors import InputError, one_line
from ddpm.randomness import Order
from ddpm.runner.distributed import signals
from ddpm.runner.safe_io.atomic import free_bytes

AHEAD = 2  # batches that a process reads ahead
SHARED = Path("/dev/shm")  # where Linux has shared memory
READER_SECONDS = 600  # that a batch may take to be read, before its reader counts as hung

logger = logging.getLogger(__name__)


def load(
    data: ImageData, order: Order, device: torch.device, num_workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's images and labels of each batch on the device: uint8 (B, C, H, W), int64 (B,).

    Raises:
        InputError: a process that reads ahead died, or does not answer.
    """
    num_workers = _possible(num_workers, (order.rows.stop - order.rows.start) * _image_bytes(data))
    loader = DataLoader(
        data,
        batch_sampler=order,
        collate_fn=as_is,  # `data` gathers a whole batch at once
        num_workers=num_workers,
        prefetch_factor=AHEAD if num_workers else None,
        pin_memory=device.type == "cuda",
        timeout=READER_SECONDS if num_workers else 0,
        worker_init_fn=_init_reader,
    )
    try:
        for images, labels in started(loader):
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    except (RuntimeError, OSError, EOFError) as error:
        if not num_workers or (type(error) is RuntimeError and "DataLoader" not in str(error)):
            raise
        raise InputError(
            f"job.num_workers={num_workers}: a process that reads ahead is gone "
            f"({one_line(error, 80)}). Memory or /dev/shm may be short; job.num_workers=0 reads in "
            "the training process."
        ) from error


def _possible(num_workers: int, batch_bytes: int) -> int:
    """As many of the wanted processes as there is shared memory for: it holds the batches that they
    hand over. Containers may have little of it, or none. The images are the same with any number.
    """
    if not num_workers:
        return 0
    try:
        get_context().Lock()
        torch.zeros(1).share_memory_()
    except (OSError, RuntimeError, ImportError) as error:
        possible, why = 0, one_line(error, 80)
    else:
        free = free_bytes(SHARED)
        if free is None:
            return num_workers
        possible = min(num_workers, free // max(1, AHEAD * batch_bytes))
        why = f"{SHARED} has room for {free / 1e6:,.0f} MB, {num_workers} need "
        why += f"{num_workers * AHEAD * batch_bytes / 1e6:,.0f} MB"
    if possible < num_workers:
        reads = (
            f"{possible} read ahead" if possible else "the training process loads the data itself"
        )
        logger.warning("job.num_workers=%d: %s (%s).", num_workers, reads, why)
    return possible


def _image_bytes(data: ImageData) -> int:
    """The size of an image."""
    return data.channels * data.image_size**2


def started(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Its iterator, which notices the end of a reader when it is asked for a batch.

    torch would raise from a signal's handler as well, in whatever the process is doing then: a
    tracker would be switched off for it, or a checkpoint not be written.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
    return batches


def _init_reader(number: int) -> None:
    """Called in each reader when it has set torch's handlers of signals."""
    signals.leave_to_parent()


def as_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch
