"""Batches on their way from the data set to the device, read ahead by other processes if asked."""

import signal
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddpm import signals
from ddpm.data.base import ImageData
from ddpm.errors import InputError, shown
from ddpm.randomness import Order

READER_SECONDS = 600  # that a batch may take to be read, before its reader counts as hung


def load(
    data: ImageData, order: Order, device: torch.device, num_workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's images and labels of each batch on the device: uint8 (B, C, H, W), int64 (B,).

    Raises:
        InputError: a process that reads ahead died, or does not answer.
    """
    loader = DataLoader(
        data,
        batch_sampler=order,
        collate_fn=as_is,  # `data` gathers a whole batch at once
        num_workers=num_workers,
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
        reason = shown((str(error) or type(error).__name__).splitlines()[0])
        raise InputError(
            f"job.num_workers={num_workers}: a process that reads ahead is gone ({reason}). Memory "
            "or /dev/shm may be short; job.num_workers=0 reads in the training process."
        ) from error


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
