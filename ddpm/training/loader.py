"""Loads batches onto the device, with worker processes if job.num_workers > 0."""

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddpm.data.base import ImageData
from ddpm.errors import InputError, one_line
from ddpm.randomness import Order
from ddpm.runner.distributed import signals
from ddpm.runner.safe_io.atomic import free_bytes

AHEAD = 2  # batches that a worker prefetches
SHARED = Path("/dev/shm")  # shared memory on Linux
CHECK_SECONDS = 5  # while a batch is awaited, how often to check that the workers live
WORKER_SECONDS = 600  # time to load a batch, after which its worker counts as hung

logger = logging.getLogger(__name__)


def load(
    data: ImageData, order: Order, device: torch.device, num_workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's images and labels of each batch on the device: (B, C, H, W), int64 (B,).

    Raises:
        InputError: a worker process died or hangs.
    """
    num_workers = _limit(num_workers, (order.rows.stop - order.rows.start) * _image_bytes(data))
    loader = DataLoader(
        data,
        batch_sampler=order,
        collate_fn=as_is,  # `data` gathers a whole batch at once
        num_workers=num_workers,
        prefetch_factor=AHEAD if num_workers else None,
        pin_memory=device.type == "cuda",
        timeout=CHECK_SECONDS if num_workers else 0,
        worker_init_fn=_init_worker,
    )
    try:
        for images, labels in batches_of(loader):
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    except (RuntimeError, OSError, EOFError) as error:
        if not num_workers or not _is_of_workers(error):
            raise
        raise InputError(
            f"job.num_workers={num_workers}: a worker process died ({one_line(error, 80)}), maybe "
            "for lack of memory or /dev/shm space; job.num_workers=0 loads in the training process."
        ) from error


def _limit(num_workers: int, batch_bytes: int) -> int:
    """The number of workers, limited by shared memory, which holds their batches and may be small
    or missing in containers. The number does not change the images."""
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
        loads = f"{possible} are used" if possible else "the training process loads the data"
        logger.warning("job.num_workers=%d: %s (%s).", num_workers, loads, why)
    return possible


def _image_bytes(data: ImageData) -> int:
    """Bytes of an image."""
    return math.prod(data.shape) * np.dtype(data.dtype).itemsize


def _is_of_workers(error: Exception) -> bool:
    """Whether torch's loader lost a worker, rather than a data set's own error."""
    if str(error).startswith("Caught "):  # raised in a worker by the data set
        return False
    return type(error) is not RuntimeError or "DataLoader" in str(error)


def batches_of(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches.

    Raises:
        RuntimeError: a worker died, which is noticed within CHECK_SECONDS, or hangs.
    """
    batches = _start(loader)
    asked = time.monotonic()
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            # torch looks for dead workers at its timeout only; the batch can be requested again
            if not str(error).startswith("DataLoader timed out"):
                raise
            if time.monotonic() - asked >= WORKER_SECONDS:
                raise RuntimeError(f"DataLoader timed out after {WORKER_SECONDS} seconds") from None
        else:
            yield batch
            asked = time.monotonic()


def _start(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's iterator, whose workers have started; it reports a dead one when the next batch
    is requested.

    torch's own signal handler would also raise in the middle of other work, which would switch off
    a tracker or prevent a checkpoint.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    with signals.held():
        batches = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
    return batches


def _init_worker(number: int) -> None:
    """Runs in each worker after torch has installed its signal handlers."""
    signals.leave_to_parent()


def as_is(batch: Any) -> Any:
    return batch
