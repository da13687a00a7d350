"""The figures of training between two log lines, gathered without making the device wait."""

import contextlib
import math
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.runner.distributed.fabric import memory
from ddpm.training.step import QUARTERS, StepMetrics

COLUMNS = 3 + 2 * QUARTERS  # of a step's row: loss, gradient norm, broken; sums and numbers by time


class Meter:
    """Mean loss (of all steps t, and of each quarter of them) and gradient norm, memory, and images
    per second without the time for pictures and files.

    Steps that were left out as not finite are counted, and are in no mean.

    Args:
        batch_size: the global one.
        steps_per_epoch: to say in which epoch a step lies.
    """

    def __init__(self, batch_size: int, steps_per_epoch: float) -> None:
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self._restart()

    def _restart(self) -> None:
        self.before: Tensor | None = None  # of the steps that a checkpoint knew of
        self.rows: list[Tensor] = []
        self.began = time.perf_counter()

    def add(self, metrics: StepMetrics) -> None:
        """Note the numbers of one step on this rank."""
        scalars = torch.stack([number.float() for number in metrics[:3]])
        self.rows.append(torch.cat([scalars, metrics.by_time.flatten()]))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in here is not training."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def state(self, fabric: Fabric) -> Tensor:
        """A row for each step since the last reading, over all ranks: (n, COLUMNS). A run that goes
        on from here logs the mean of an uninterrupted one, to the bit."""
        rows = torch.stack(self.rows) if self.rows else torch.zeros(0, COLUMNS)
        if fabric.world_size > 1:
            rows = fabric.all_reduce(rows.to(fabric.device), reduce_op="mean")
        rows = rows.cpu()
        return rows if self.before is None else torch.cat([self.before, rows])

    def restore(self, state: Tensor | None) -> None:
        """Take up what `state` gave; an older program gave rows without the columns by time."""
        if state is not None:
            state = F.pad(state, (0, COLUMNS - state.shape[1]))
        self.before = state

    def read(self, fabric: Fabric, step: int) -> dict[str, float]:
        """The figures since the last reading, over all ranks; waits for the device.

        What no step was there for, because it was left out or drew no such t, is not among them.
        """
        rows = self.state(fabric)
        seconds = time.perf_counter() - self.began
        whole = rows[rows[:, 2] == 0]
        figures: dict[str, float] = {}
        if len(whole):
            losses, norms = whole[:, :2].unbind(1)
            figures = {"train/loss": float(losses.mean()), "train/grad_norm": float(norms.mean())}
            sums, counts = whole[:, 3:].sum(0).view(2, QUARTERS)
            means = enumerate((sums / counts).tolist(), start=1)
            figures |= {f"train/loss_q{i}": mean for i, mean in means if math.isfinite(mean)}
        used = torch.tensor(memory(fabric.device), device=fabric.device)
        if fabric.world_size > 1:
            used = fabric.all_reduce(used, reduce_op="max")
        figures |= {
            "train/skipped": float(len(rows) - len(whole)),
            "train/images_per_sec": len(self.rows) * self.batch_size / seconds,
            "train/memory_mb": float(used),
            "train/epoch": step / self.steps_per_epoch,
        }
        self._restart()
        return figures

    @staticmethod
    def text(figures: dict[str, float]) -> str:
        """The figures a person wants to see go by."""
        shown = [f"loss {loss:.4f}"] if (loss := figures.get("train/loss")) is not None else []
        shown += [f"{k.removeprefix('eval/')} {v:.2f}" for k, v in figures.items() if "eval/" in k]
        shown += [f"{n:.0f} steps not finite"] if (n := figures["train/skipped"]) else []
        return ", ".join([*shown, f"{figures['train/images_per_sec']:.0f} images/s"])
