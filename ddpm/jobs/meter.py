"""The figures of training between two log lines, gathered without making the device wait."""

import contextlib
import time
from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor


class Meter:
    """Mean loss and gradient norm, and images per second without the time for pictures and files.

    Args:
        batch_size: the global one.
        steps_per_epoch: to say in which epoch a step lies.
    """

    def __init__(self, batch_size: int, steps_per_epoch: float) -> None:
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self._restart()

    def _restart(self) -> None:
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.began = time.perf_counter()

    def add(self, loss: Tensor, grad_norm: Tensor) -> None:
        self.losses.append(loss)
        self.norms.append(grad_norm)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in here is not training."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def read(self, fabric: Fabric, step: int, lr: float) -> dict[str, float]:
        """The figures since the last reading, over all ranks; waits for the device."""
        loss = torch.stack(self.losses).mean()
        loss = float(fabric.all_reduce(loss, reduce_op="mean"))
        norm = float(torch.stack(self.norms).mean())
        seconds = time.perf_counter() - self.began
        figures = {
            "train/loss": loss,
            "train/lr": lr,
            "train/grad_norm": norm,
            "train/images_per_sec": len(self.losses) * self.batch_size / seconds,
            "train/epoch": step / self.steps_per_epoch,
        }
        self._restart()
        return figures

    @staticmethod
    def text(figures: dict[str, float]) -> str:
        """The figures a person wants to see go by."""
        shown = [f"loss {figures['train/loss']:.4f}"]
        shown += [f"{k.removeprefix('eval/')} {v:.2f}" for k, v in figures.items() if "eval/" in k]
        return ", ".join([*shown, f"{figures['train/images_per_sec']:.0f} images/s"])
