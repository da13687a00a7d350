"""Decisions that all ranks must agree on: too many non-finite steps, and requests from outside."""

import time
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.runner.distributed.reduce import any_rank
from ddpm.runner.distributed.signals import GracefulStop
from ddpm.runner.runs import requests

EVERY = 10  # steps between two checks that have to wait for the device
LOOK_EVERY = 1.0  # seconds between two looks at the folder, if EVERY steps take longer


class Requests(NamedTuple):
    """Requests to a run: to stop, to draw a preview, to save a checkpoint."""

    stop: bool = False
    sample: bool = False
    checkpoint: bool = False


def never() -> bool:
    """The answer, where nobody can ask to stop."""
    return False


class Watch:
    """Checks after each step of a run, in agreement with the other ranks.

    Args:
        max_nonfinite_steps: number of consecutive non-finite steps that ends the run.
        signals: requests to stop this process.
        folder: the run folder; the files `stop`, `sample` and `checkpoint` in it are requests, too.
    """

    def __init__(
        self, fabric: Fabric, max_nonfinite_steps: int, signals: GracefulStop, folder: Path
    ) -> None:
        self.fabric, self.max_nonfinite_steps, self.signals = fabric, max_nonfinite_steps, signals
        self.folder = folder
        self.pending = Requests()  # by files that rank zero has seen and other ranks have not
        self.looked_at = time.monotonic()
        self.every = 1 if fabric.device.type == "cpu" else EVERY
        self.unchecked: list[Tensor] = []
        self.consecutive = 0
        self.failed_at = 0  # the step, 1, 2, ..., that was one too many

    def too_many_nonfinite(self, nonfinite: Tensor, done: int, check_now: bool) -> bool:
        """Whether too many consecutive steps were not finite; the same on all ranks.

        Args:
            nonfinite: whether the last step was not finite, a scalar, the same on all ranks.
            check_now: wait for the device now, whatever the step.
        """
        self.unchecked.append(nonfinite)
        if not check_now and done % self.every:
            return False
        first = done + 1 - len(self.unchecked)
        for step, is_nonfinite in enumerate(torch.stack(self.unchecked).tolist(), first):
            self.consecutive = self.consecutive + 1 if is_nonfinite else 0
            if self.consecutive >= self.max_nonfinite_steps:
                self.failed_at = step
                return True
        self.unchecked = []
        return False

    def requested(self, done: int) -> Requests:
        """The requests to obey after `done` steps: the same, after the same step, on all ranks.

        A request for a preview or a checkpoint is returned once.
        """
        if self.fabric.is_global_zero and self._is_time_to_look(done):
            self._look()
        requested = Requests(self.signals.wanted or self.pending.stop, *self.pending[1:])
        if self.fabric.world_size > 1:
            if done % self.every:
                return Requests()
            flags = torch.tensor(requested, dtype=torch.float32, device=self.fabric.device)
            requested = Requests(*any_rank(self.fabric, flags).tolist())
        self.pending = Requests()
        return requested

    def _is_time_to_look(self, done: int) -> bool:
        return done % EVERY == 0 or time.monotonic() - self.looked_at >= LOOK_EVERY

    def _look(self) -> None:
        """Look for files, and remove those that count once."""
        sample, checkpoint = (requests.take(self.folder, name) for name in requests.ONCE)
        self.pending = Requests(
            stop=requests.end_state(self.folder) is not None,
            sample=sample or self.pending.sample,
            checkpoint=checkpoint or self.pending.checkpoint,
        )
        self.looked_at = time.monotonic()

    def stop_wanted(self) -> bool:
        """Whether any rank is to stop, now. Collective: all ranks call it and get the same."""
        file = self.fabric.is_global_zero and requests.end_state(self.folder) is not None
        if self.fabric.world_size == 1:  # without waiting for the device
            return self.signals.wanted or file
        wanted = torch.tensor(float(self.signals.wanted or file), device=self.fabric.device)
        return bool(any_rank(self.fabric, wanted))
