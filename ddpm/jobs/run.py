"""The run a job works in: its folder, its trackers, and the checkpoint it goes on from."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm import checkpoint, pretrained, run_dir
from ddpm.diffusion import GaussianDiffusion
from ddpm.hardware import describe
from ddpm.plan import Plan
from ddpm.trackers.base import RunInfo, Tracker, Trackers, open_trackers


@dataclass
class Run:
    """What a job is given of the world. On all ranks but the first, nothing is written.

    A job checks and builds what it needs, and then calls `begin`: until there, no file is made.

    Args:
        plan: what the run is to be.
        fabric: the processes it runs in.
        trackers: open the trackers it wants beside the local one.
        state: the checkpoint to go on from or to sample from, if any, and its `path`.
    """

    plan: Plan
    fabric: Fabric
    trackers: dict[str, Callable[..., Tracker]]
    state: dict[str, Any] | None = None
    path: Path | None = None
    end: str = "done"
    step: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    tracker: Trackers = field(default_factory=lambda: Trackers([]))

    def __post_init__(self) -> None:
        self.dir = self.plan.output_dir
        self.leads = self.fabric.is_global_zero
        self.step = self.state["step"] if self.state else 0

    @contextlib.contextmanager
    def begin(self) -> Iterator[None]:
        """Make and lock the run's folder and open its trackers; tell in it how the run ends.

        Raises:
            InputError: the folder is another run's, or being worked on.
        """
        if self.leads and not self.plan.resume:
            self.dir = run_dir.create(self.dir, unique=self.plan.unique)
        self.dir = Path(self.fabric.broadcast(str(self.dir)))
        if not self.leads:
            yield
            return
        with run_dir.lock(self.dir):
            run_dir.write_config(self.dir, self.plan.hparams)
            run_dir.write_status(self.dir, "running", self.step)
            try:
                with self._open_trackers() as self.tracker:
                    yield
                    self.tracker.close(self.end)
            except BaseException as error:
                end = "preempted" if isinstance(error, KeyboardInterrupt) else "failed"
                reason = str(error) or type(error).__name__
                run_dir.write_status(self.dir, end, self.step, error=reason)
                raise
            run_dir.write_status(self.dir, self.end, self.step)

    def _open_trackers(self) -> Trackers:
        hparams = self.plan.hparams
        tracker = open_trackers(
            self.trackers,
            run_dir=self.dir,
            run=RunInfo(
                run_id=hparams["run_id"],
                name=self.plan.name,
                group=self.plan.group,
                tags=self.plan.tags,
                job_type=hparams["choices"]["job"],
            ),
            hparams=hparams,
            start_step=self.step if self.plan.resume else 0,
        )
        self.say(f"folder   {self.dir}\ndevice   {describe(self.fabric)}")
        for place in tracker.places:
            self.say(f"tracker  {place}")
        return tracker

    def say(self, text: str) -> None:
        """Print a line, once for all ranks."""
        if self.leads:
            print(text, flush=True)

    def restore(
        self,
        model: nn.Module,
        ema: nn.Module,
        diffusion: GaussianDiffusion,
        optimizer: torch.optim.Optimizer,
    ) -> int:
        """Take up all that was learned, and the optimizer's memory; return the steps done."""
        if self.state is not None:
            pretrained.fill(model, diffusion, self.state, "model", self.path)
            checkpoint.load_weights(ema, self.state["ema"], self.path)
            optimizer.load_state_dict(self.state["optimizer"])
            self.state = None  # a second copy of everything: let it go
        return self.step

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Keep the figures after `step` steps."""
        self.step, self.figures = step, figures
        self.tracker.log(step, figures)
        if self.leads:
            self._write_progress()

    def _write_progress(self) -> None:
        with contextlib.suppress(OSError):  # a full disk ends no run; checkpoints will tell
            run_dir.write_status(self.dir, "running", self.step)

    def log_grid(self, step: int, grid: Tensor, name: str = "samples") -> None:
        """Keep a picture, uint8 (C, H, W)."""
        self.tracker.log_image(step, name, grid)

    def save(
        self,
        step: int,
        model: nn.Module,
        ema: nn.Module,
        diffusion: GaussianDiffusion,
        optimizer: torch.optim.Optimizer,
        keep: int,
    ) -> None:
        """Write a checkpoint after `step` steps."""
        self.step = step
        if self.leads:
            state = {
                "step": step,
                "run_id": self.plan.hparams["run_id"],
                "hparams": self.plan.hparams,
                "model": model.state_dict(),
                "ema": ema.state_dict(),
                "diffusion": diffusion.state_dict(),  # of a schedule that learns; else empty
                "optimizer": optimizer.state_dict(),
            }
            checkpoint.save(self.dir / "checkpoints", state, keep)
            self._write_progress()
