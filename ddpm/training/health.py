"""What all ranks must see alike: steps that broke, and signals that ask to stop."""

from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.runner.distributed.signals import GracefulStop
from ddpm.runner.runs import stop_file

EVERY = 10  # steps between two looks at a device that would have to be waited for


class Watch:
    """Looks at each step of a run, together with the other ranks.

    Args:
        max_nonfinite_steps: so many steps in a row that are not finite end the run.
        signals: what asks this process to stop.
        folder: of the run; a file in it may ask, too.
    """

    def __init__(
        self, fabric: Fabric, max_nonfinite_steps: int, signals: GracefulStop, folder: Path
    ) -> None:
        self.fabric, self.max_nonfinite_steps, self.signals = fabric, max_nonfinite_steps, signals
        self.folder = folder
        self.every = 1 if fabric.device.type == "cpu" else EVERY
        self.unseen: list[Tensor] = []
        self.in_a_row = 0
        self.at = 0  # the step, 1, 2, ..., that was one too many

    def gave_up(self, broken: Tensor, done: int, look: bool) -> bool:
        """Whether too many steps in a row were broken, after `done` steps; known alike to all.

        Args:
            broken: whether the last step was, a scalar; the same on all ranks.
            look: wait for the device now, whatever the time.
        """
        self.unseen.append(broken)
        if not look and done % self.every:
            return False
        for at, one in enumerate(torch.stack(self.unseen).tolist(), done + 1 - len(self.unseen)):
            self.in_a_row = self.in_a_row + 1 if one else 0
            if self.in_a_row >= self.max_nonfinite_steps:
                self.at = at
                return True
        self.unseen = []
        return False

    def stopping(self, done: int) -> bool:
        """Whether any rank was asked to stop: all must leave the loop after the same step."""
        wanted = self.signals.wanted or self.asked_by_file(done)
        if self.fabric.world_size == 1:
            return wanted
        if done % self.every:
            return False
        votes = torch.tensor(float(wanted), device=self.fabric.device)
        return bool(self.fabric.all_reduce(votes, reduce_op="sum") > 0)

    def asked_by_file(self, done: int) -> bool:
        """Whether somebody has put the file there; looked for by the first rank, now and then."""
        looks = done % EVERY == 0 and self.fabric.is_global_zero
        return looks and stop_file.end_of(self.folder) is not None
