"""Decisions that all ranks must agree on: too many non-finite steps, and requests to stop."""

from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.runner.distributed.reduce import any_rank
from ddpm.runner.distributed.signals import GracefulStop
from ddpm.runner.runs import stop_file

EVERY = 10  # steps between two checks that have to wait for the device


class Watch:
    """Checks after each step of a run, in agreement with the other ranks.

    Args:
        max_nonfinite_steps: number of consecutive non-finite steps that ends the run.
        signals: requests to stop this process.
        folder: the run folder; a stop file in it is a request, too.
    """

    def __init__(
        self, fabric: Fabric, max_nonfinite_steps: int, signals: GracefulStop, folder: Path
    ) -> None:
        self.fabric, self.max_nonfinite_steps, self.signals = fabric, max_nonfinite_steps, signals
        self.folder = folder
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

    def stopping(self, done: int) -> bool:
        """Whether any rank was asked to stop: all must leave the loop after the same step."""
        requested = self.signals.wanted or self.requested_by_file(done)
        if self.fabric.world_size == 1:
            return requested
        if done % self.every:
            return False
        return bool(any_rank(self.fabric, torch.tensor(requested, device=self.fabric.device)))

    def asked(self) -> bool:
        """Whether any rank was asked to stop, now; the same on all ranks, which all call it."""
        file = self.fabric.is_global_zero and stop_file.end_of(self.folder) is not None
        wanted = torch.tensor(float(self.signals.wanted or file), device=self.fabric.device)
        return bool(any_rank(self.fabric, wanted))

    def requested_by_file(self, done: int) -> bool:
        """Whether the run folder holds a stop file; rank zero looks every few steps."""
        looks = done % EVERY == 0 and self.fabric.is_global_zero
        return looks and stop_file.end_of(self.folder) is not None
