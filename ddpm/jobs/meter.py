"""The figures of training between two log lines, gathered without making the device wait."""

import contextlib
import time
from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor


class Meter:
    """Mean loss and gradient norm, and images per second without the time for pictures and files.

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

    def add(self, loss: Tensor, grad_norm: Tensor, broken: Tensor) -> None:
        """Note the numbers of one step, scalars, on this rank."""
        self.rows.append(torch.stack([loss.float(), grad_norm.float(), broken.float()]))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in here is not training."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def state(self, fabric: Fabric) -> Tensor:
        """Loss, gradient norm and brokenness of each step since the last reading, over all ranks:
        (n, 3). A run that goes on from here logs the mean of an uninterrupted one, to the bit."""
        rows = torch.stack(self.rows) if self.rows else torch.zeros(0, 3, device=fabric.device)
        if fabric.world_size > 1:
            rows = fabric.all_reduce(rows, reduce_op="mean")
        rows = rows.cpu()
        return rows if self.before is None else torch.cat([self.before, rows])

    def restore(self, state: Tensor | None) -> None:
        """Take up what `state` gave."""
        self.before = state

    def read(self, fabric: Fabric, step: int, lr: float) -> dict[str, float]:
        """The figures since the last reading, over all ranks; waits for the device.

        Where every step was left out, there is no loss and no gradient norm among them.
        """
        losses, norms, broken = self.state(fabric).unbind(1)
        whole = broken == 0
        seconds = time.perf_counter() - self.began
        means = {"train/loss": losses[whole].mean(), "train/grad_norm": norms[whole].mean()}
        figures = {name: float(mean) for name, mean in means.items() if whole.any()} | {
            "train/lr": lr,
            "train/skipped": float((~whole).sum()),
            "train/images_per_sec": len(self.rows) * self.batch_size / seconds,
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
