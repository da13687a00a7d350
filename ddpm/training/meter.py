"""Metrics of training between two log lines, collected without waiting for the device."""

import contextlib
import math
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.runner.distributed.fabric import memory
from ddpm.runner.distributed.reduce import all_reduce
from ddpm.training.step import QUARTERS, StepMetrics

COLUMNS = 3 + 2 * QUARTERS  # of a row: loss, gradient norm, nonfinite; sums and counts by time


class Meter:
    """Mean loss (of all t, and of each quarter of 0..T-1), gradient norm, memory, and images per
    second without the time for previews and files.

    Steps skipped as not finite are counted and excluded from the means.

    Args:
        batch_size: of the global batch.
        steps_per_epoch: for the epoch of a step.
    """

    def __init__(self, batch_size: int, steps_per_epoch: float) -> None:
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self._restart()

    def _restart(self) -> None:
        self.restored: Tensor | None = None  # rows from a checkpoint
        self.rows: list[Tensor] = []
        self.began = time.perf_counter()

    def add(self, metrics: StepMetrics) -> None:
        """Add a step of this rank."""
        scalars = torch.stack([metric.float() for metric in metrics[:3]])
        self.rows.append(torch.cat([scalars, metrics.by_time.flatten()]))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the body from the rate."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def state(self, fabric: Fabric) -> Tensor:
        """A row for each step since the last log line, averaged over all ranks: (n, COLUMNS). With
        it, a resumed run logs the same means as an uninterrupted one, to the bit."""
        rows = torch.stack(self.rows) if self.rows else torch.zeros(0, COLUMNS)
        if fabric.world_size > 1:
            rows = all_reduce(fabric, rows.to(fabric.device), "mean")
        rows = rows.cpu()
        return rows if self.restored is None else torch.cat([self.restored, rows])

    def restore(self, state: Tensor | None) -> None:
        """Restore what `state` returned; rows of older versions lack the columns by time."""
        if state is not None:
            state = F.pad(state, (0, COLUMNS - state.shape[1]))
        self.restored = state

    def read(self, fabric: Fabric, step: int) -> dict[str, float]:
        """Metrics since the last log line, over all ranks; waits for the device.

        Means without any step (skipped, or none with such t) are left out.
        """
        rows = self.state(fabric)
        seconds = time.perf_counter() - self.began
        finite = rows[rows[:, 2] == 0]
        metrics: dict[str, float] = {}
        if len(finite):
            losses, norms = finite[:, :2].unbind(1)
            metrics = {"train/loss": float(losses.mean()), "train/grad_norm": float(norms.mean())}
            sums, counts = finite[:, 3:].sum(0).view(2, QUARTERS)
            means = enumerate((sums / counts).tolist(), start=1)
            metrics |= {f"train/loss_q{i}": mean for i, mean in means if math.isfinite(mean)}
        used = torch.tensor(memory(fabric.device), device=fabric.device)
        used = all_reduce(fabric, used, "max")
        metrics |= {
            "train/skipped": float(len(rows) - len(finite)),
            "train/images_per_sec": len(self.rows) * self.batch_size / seconds,
            "train/memory_mb": float(used),
            "train/epoch": step / self.steps_per_epoch,
        }
        self._restart()
        return metrics

    @staticmethod
    def text(metrics: dict[str, float]) -> str:
        """The metrics for the progress bar."""
        shown = [f"loss {loss:.4f}"] if (loss := metrics.get("train/loss")) is not None else []
        evaluated = {k.removeprefix("eval/"): v for k, v in metrics.items() if "eval/" in k}
        shown += [f"held out {loss:.4f}"] if (loss := evaluated.pop("loss", None)) else []
        shown += [f"{name} {v:.2f}" for name, v in evaluated.items() if "loss_" not in name]
        shown += [f"{n:.0f} steps not finite"] if (n := metrics["train/skipped"]) else []
        return ", ".join([*shown, f"{metrics['train/images_per_sec']:.0f} images/s"])
