"""The run a job works in: its folder, its trackers, and the checkpoint it goes on from."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.errors import InputError, shown
from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.config import presets
from ddpm.runner.config.plan import Plan
from ddpm.runner.distributed import threads
from ddpm.runner.distributed.fabric import describe
from ddpm.runner.execution.outputs import offer
from ddpm.runner.runs import run_dir, stop_file
from ddpm.runner.safe_io.failpoint import crashpoint
from ddpm.runner.terminal import streams
from ddpm.trackers.base import RunInfo, Tracker, grid_file
from ddpm.trackers.multi import Trackers, open_trackers


class Saved(Protocol):
    """The part of a run that checkpoints hold: `training.state.TrainState`."""

    def state(self, *, keep: bool) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any], path: Path | None) -> None: ...


class Measured(Protocol):
    """Metrics of the steps since the last log line: `training.meter.Meter`."""

    def state(self, fabric: Fabric) -> Any: ...

    def restore(self, state: Any) -> None: ...


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
    signal: int | None = None
    step: int = 0
    saved: int | None = None
    total: int | None = None  # steps, where that is known
    fingerprint: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    losses: str | None = None  # of console output, as far as they are noted in the folder
    tracker: Trackers = field(default_factory=lambda: Trackers([]))

    def __post_init__(self) -> None:
        self.dir = self.plan.output.path
        self.leads = self.fabric.is_global_zero
        self.step = self.state["step"] if self.state else 0
        self.saved = self.step if self.state and self.plan.trains else None
        before = run_dir.read_status(self.dir) if self.plan.output.begun else {}
        self.already_done = before.get("state") == "done"
        self.previous_seconds = number(before.get("seconds"))
        about = run_dir.read_about(self.dir) if self.plan.output.begun else {}
        chosen = [about.get("chosen"), self.state.get("chosen") if self.state else None]
        self.earlier_choices: dict[str, Any] = {}
        for choices in chosen:  # what was chosen after the checkpoint stands in about.json
            self.earlier_choices |= choices if isinstance(choices, dict) else {}
        made = self.state.get("made_with", {}) if self.state else about
        self.threads_before = made.get("threads")
        self.choices: dict[str, int] = {}
        self.began = time.monotonic()

    @contextlib.contextmanager
    def begin(self) -> Iterator[None]:
        """Make and lock the run's folder and open its trackers; tell in it how the run ends.

        Raises:
            InputError: the folder is another run's, or being worked on.
        """
        hparams = self.plan.hparams
        if self.leads and not self.plan.output.begun:
            self.dir = run_dir.create(self.dir, hparams, unique=self.plan.output.unique)
        self.dir = Path(self.fabric.broadcast(str(self.dir)))
        if not self.leads:
            yield
            return
        with run_dir.lock(self.dir, new=not self.plan.output.begun), streams.forgetting():
            run_dir.clean(self.dir)
            stop_file.forget(self.dir)
            run_dir.write_config(self.dir, hparams, self.step if self.plan.output.begun else None)
            self._write_status("running")
            here = {"device": describe(self.fabric), "host": socket.gethostname()}
            self.note(**made_with(self.fabric) | here, chosen=self.choices)
            try:
                with self._open_trackers() as self.tracker:
                    yield
                    if self.end == "done":
                        offer(self.tracker, self.dir, self.step, trains=self.plan.trains)
                    self.tracker.close(self.end)
            except BaseException as error:
                end = "preempted" if isinstance(error, KeyboardInterrupt) else "failed"
                self._write_status(end, str(error) or type(error).__name__)
                raise
            self._write_status(self.end)

    def _write_status(self, state: str, error: str | None = None) -> None:
        """Tell how the run stands. A full disk ends no run; a checkpoint will tell of it."""
        self._note_losses()
        with contextlib.suppress(OSError):
            run_dir.write_status(
                self.dir,
                state,
                self.step,
                total=self.total,
                saved=self.saved,
                seconds=round(self.previous_seconds + time.monotonic() - self.began, 1),
                error=error,
            )

    def _note_losses(self) -> None:
        """Note in `about.json` that lines of the console are lost, once for each stream."""
        losses = streams.losses()
        if losses is not None and losses != self.losses:
            self.losses = losses
            self.note(console=losses)

    def note(self, **facts: Any) -> None:
        """Keep facts that show when the run starts, for reports. A full disk is no harm."""
        if self.leads:
            with contextlib.suppress(OSError):
                run_dir.note(self.dir, **facts)

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
                title=self.plan.title,
            ),
            hparams=hparams,
            start_step=self.step if self.plan.output.begun else 0,
        )
        self.say(f"folder   {self.dir}\ndevice   {describe(self.fabric)}")
        for place in tracker.places:
            self.say(f"tracker  {place}")
        if self.plan.trains and not self.plan.output.begun:
            for line in presets.lines(self.plan.config):
                self.say(f"preset   {line}")
        for change in self.plan.changes:
            self.say(f"changed  {change}")
        return tracker

    def say(self, text: str) -> None:
        """Print a line, once for all ranks."""
        if self.leads:
            print(text, flush=True)

    def check_data(self, fingerprint: str) -> None:
        """See that the images are those that the run began with.

        Raises:
            InputError: they are not, and nobody said that they may differ.
        """
        self.fingerprint = fingerprint
        before = self.state.get("data", fingerprint) if self.state else fingerprint
        if before != fingerprint and "data" not in self.plan.config["allow_changes"]:
            raise InputError(
                f"resume={self.dir}: the data set is not the one that the run began with (files, "
                "sizes or settings differ). Put it back, or go on all the same with "
                "'allow_changes=[data]'."
            )

    def recorded_choice(self, name: str) -> Any:
        """An automatic choice made before this run was resumed, or None; the same on all ranks."""
        return self.fabric.broadcast(self.earlier_choices.get(name))

    def record_choice(self, **choices: int) -> None:
        """Record automatic choices, to be repeated when the run is resumed."""
        self.choices |= choices

    def restore(self, learned: Saved, meter: Measured) -> int:
        """Take up all that was learned, and the optimizer's memory; return the steps done."""
        self._adopt_threads(self.threads_before)
        if self.state is not None:
            learned.load(self.state, self.path)
            meter.restore(self.state.get("meter"))
            here = made_with(self.fabric)
            for name, there in self.state.get("made_with", here).items():
                if there != here.get(name):
                    self.say(
                        f"note     {name} is {here.get(name)}, was {shown(there)}: the results "
                        "will agree with those of an uninterrupted run, but not to the bit"
                    )
            self.state = None  # a second copy of everything: let it go
        return self.step

    def _adopt_threads(self, count: Any) -> None:
        """Take as many threads as the run was begun with: the order of sums depends on it."""
        alone = self.fabric.world_size == 1 and self.fabric.device.type == "cpu"
        typed = self.plan.config["hardware"].get("threads", "auto") != "auto"
        if not alone or typed or "OMP_NUM_THREADS" in os.environ:
            return
        if isinstance(count, int) and 1 <= count <= len(threads.own_cores()):
            torch.set_num_threads(count)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Keep the metrics after `step` steps."""
        self.step, self.metrics = step, metrics
        self.tracker.log(step, metrics)
        crashpoint("run.logged")
        if self.leads:
            self._write_status("running")

    def log_grid(self, step: int, grid: Tensor, name: str = "samples") -> None:
        """Keep a picture, uint8 (C, H, W)."""
        crashpoint("run.grid")
        self.tracker.log_image(step, name, grid)

    def has_grid(self, step: int) -> bool:
        """Whether the picture after `step` steps is there; all ranks are told the same."""
        there = grid_file(self.dir, "samples", step).exists() if self.leads else False
        return self.fabric.broadcast(there)

    def save(self, step: int, learned: Saved, meter: Measured, keep: int) -> None:
        """Write a checkpoint after `step` steps. All ranks call it, the first one writes.

        Raises:
            InputError: the weights are broken, or the disk is full.
        """
        self.step = step
        measured = meter.state(self.fabric)
        all_learned = learned.state(keep=self.leads)
        if self.leads:
            state = {
                "step": step,
                "run_id": self.plan.hparams["run_id"],
                "hparams": self.plan.hparams,
                **all_learned,
                "meter": measured,
                "data": self.fingerprint,
                "made_with": made_with(self.fabric),
                "chosen": self.choices,
            }
            run_dir.sync(self.dir / "metrics.jsonl")  # a resume writes no line of before again
            file = checkpoint.save(self.dir / "checkpoints", state, keep)
            self.saved = step
            self._write_status("running")
            self.tracker.log_files("model", step, [file], final=False)

    def preempted(self, signal: int | None, how: str) -> None:
        """The run ends early, because it was asked to: by a signal, by a file in its folder, or by
        the end of the process that started it."""
        end = stop_file.end_of(self.dir)
        self.end, self.signal = end or "preempted", signal
        by = "the end of the process that started it"
        if signal is not None or end is not None:
            by = "a signal" if signal is not None else f"the file {self.dir / stop_file.FILE}"
        self.say(f"stopped  asked to by {by}, {how}")


def number(value: Any) -> float:
    """A figure from a file, or 0 where it is none."""
    return float(value) if isinstance(value, int | float) else 0.0


def made_with(fabric: Fabric) -> dict[str, Any]:
    """On what the last digits of a result depend."""
    return {
        "torch": str(torch.__version__),
        "device": fabric.device.type,
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "precision": str(fabric.strategy.precision.precision),
    }
