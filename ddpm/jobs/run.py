"""The run a job works in: its folder, its trackers, and the checkpoint it goes on from."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm import checkpoint, run_dir
from ddpm.trackers.base import Trackers


@dataclass
class Run:
    """What a job is given of the world. On all ranks but the first, nothing is written.

    Args:
        dir: the run's folder.
        hparams: the resolved configuration, plain data.
        tracker: where figures and pictures go.
        state: the checkpoint to go on from or to sample from, if any, and its `path`.
        writes: True on the first rank only.
    """

    dir: Path
    hparams: dict[str, Any]
    tracker: Trackers
    state: dict[str, Any] | None = None
    path: Path | None = None
    writes: bool = True
    step: int = 0
    figures: dict[str, float] = field(default_factory=dict)

    def say(self, text: str) -> None:
        if self.writes:
            print(text, flush=True)

    def restore(self, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Take up weights, their average and the optimizer's memory; return the steps done."""
        if self.state is None:
            return 0
        checkpoint.load_weights(model, self.state["model"], self.path)
        checkpoint.load_weights(ema, self.state["ema"], self.path)
        optimizer.load_state_dict(self.state["optimizer"])
        self.step = self.state["step"]
        self.state = None  # a second copy of everything: let it go
        return self.step

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.step, self.figures = step, figures
        if self.writes:
            self.tracker.log(step, figures)
            with contextlib.suppress(OSError):  # a full disk ends no run; checkpoints will tell
                run_dir.write_status(self.dir, "running", step)

    def log_grid(self, step: int, grid: Tensor) -> None:
        """Keep a preview, uint8 (C, H, W)."""
        if self.writes:
            self.tracker.log_image(step, "samples", grid)

    def save(
        self,
        step: int,
        model: nn.Module,
        ema: nn.Module,
        optimizer: torch.optim.Optimizer,
        keep: int,
    ) -> None:
        """Write a checkpoint after `step` steps."""
        self.step = step
        if self.writes:
            state = {
                "step": step,
                "run_id": self.hparams["run_id"],
                "hparams": self.hparams,
                "model": model.state_dict(),
                "ema": ema.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            checkpoint.save(self.dir / "checkpoints", state, keep)
