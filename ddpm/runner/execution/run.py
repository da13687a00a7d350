"""The context of a job: the run's folder, its trackers, and the checkpoint it starts from."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.errors import InputError, shown
from ddpm.runner.checkpoints import checkpoint, snapshots
from ddpm.runner.config import presets
from ddpm.runner.config.plan import Plan
from ddpm.runner.distributed import threads
from ddpm.runner.distributed.fabric import describe
from ddpm.runner.execution.initial_weights import InitialWeights
from ddpm.runner.execution.outputs import offer
from ddpm.runner.runs import previews, requests, run_dir
from ddpm.runner.safe_io.failpoint import crashpoint
from ddpm.runner.terminal import streams
from ddpm.trackers.base import RunInfo, Tracker
from ddpm.trackers.multi import Trackers, open_trackers


@dataclass
class Run:
    """The context that a job runs in. Only rank 0 writes files.

    A job checks its input and builds its parts, and then calls `begin`, which creates the folder.

    Args:
        plan: of the run.
        fabric: the processes of the run.
        trackers: functions that open the trackers other than the local one.
        state: the checkpoint to resume or to sample from, if any, and its `path`.
        initial: the weights of another run that a new one begins with, if any.
    """

    plan: Plan
    fabric: Fabric
    trackers: dict[str, Callable[..., Tracker]]
    state: dict[str, Any] | None = None
    path: Path | None = None
    initial: InitialWeights | None = None
    end: str = "done"
    signal: int | None = None
    step: int = 0
    saved: int | None = None
    total: int | None = None  # steps, if known
    fingerprint: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    lost_output: str | None = None  # lost console output that about.json mentions already
    tracker: Trackers = field(default_factory=lambda: Trackers([]))

    def __post_init__(self) -> None:
        self.dir = self.plan.output.path
        self.leads = self.fabric.is_global_zero
        self.step = self.state["step"] if self.state else 0
        self.saved = self.step if self.state and self.plan.trains else None
        old_status = run_dir.read_status(self.dir) if self.plan.output.begun else {}
        self.already_done = old_status.get("state") == "done"
        self.previous_seconds = number(old_status.get("seconds"))
        about = run_dir.read_about(self.dir) if self.plan.output.begun else {}
        chosen = [about.get("chosen"), self.state.get("chosen") if self.state else None]
        self.earlier_choices: dict[str, Any] = {}
        for choices in chosen:  # about.json has those made after the checkpoint, too
            self.earlier_choices |= choices if isinstance(choices, dict) else {}
        made = self.state.get("made_with", {}) if self.state else about
        self.previous_threads = made.get("threads")
        self.choices: dict[str, int] = {}
        self.began = time.monotonic()

    @contextlib.contextmanager
    def begin(self) -> Iterator[None]:
        """Create and lock the run's folder, open the trackers, and record how the run ends.

        Raises:
            InputError: the folder belongs to another run, or another process uses it.
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
            requests.forget(self.dir)
            run_dir.write_config(self.dir, hparams, self.step if self.plan.output.begun else None)
            self._write_status("running")
            machine = {"device": describe(self.fabric), "host": socket.gethostname()}
            self.note(**made_with(self.fabric) | machine, chosen=self.choices)
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
        """Write status.json. A full disk is ignored: saving a checkpoint reports it."""
        self._note_lost_output()
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

    def _note_lost_output(self) -> None:
        """Record in about.json that console output was lost, once for each stream."""
        lost = streams.losses()
        if lost is not None and lost != self.lost_output:
            self.lost_output = lost
            self.note(console=lost)

    def note(self, **facts: Any) -> None:
        """Record facts in about.json, for reports. A full disk is ignored."""
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
                trains=self.plan.trains,
                title=self.plan.title,
            ),
            hparams=hparams,
            start_step=self.step if self.plan.output.begun else 0,
        )
        self.say(f"folder   {self.dir}\ndevice   {describe(self.fabric)}")
        for place in tracker.places:
            self.say(f"tracker  {place}")
        if self.plan.trains and self.step == 0:
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
        """Check that a resumed run has the data set that it started with.

        Raises:
            InputError: the data set differs, and allow_changes does not allow that.
        """
        self.fingerprint = fingerprint
        stored = self.state.get("data", fingerprint) if self.state else fingerprint
        if stored != fingerprint and "data" not in self.plan.config["allow_changes"]:
            raise InputError(
                f"resume={self.dir}: the data set differs from the one that the run started with "
                "(files, sizes or settings). Restore it, or resume with the new one by "
                "'allow_changes=[data]'."
            )

    def recorded_choice(self, name: str) -> Any:
        """An automatic choice made before this run was resumed, or None; the same on all ranks."""
        return self.fabric.broadcast(self.earlier_choices.get(name))

    def record_choice(self, **choices: int) -> None:
        """Record automatic choices, to be repeated when the run is resumed."""
        self.choices |= choices

    def take_state(self) -> dict[str, Any] | None:
        """The checkpoint to resume, if any; returned once, so that no second copy of the weights
        stays in memory. Prints which conditions differ from those of the checkpoint."""
        self._adopt_threads(self.previous_threads)
        state, self.state = self.state, None
        if state is not None:
            current = made_with(self.fabric)
            for name, previous in state.get("made_with", current).items():
                if previous != current.get(name):
                    self.say(
                        f"note     {name} is {current.get(name)}, was {shown(previous)}: results "
                        "agree with those of an uninterrupted run, but not bit for bit"
                    )
        return state

    def keep_best(self) -> None:
        """Keep the checkpoint that the run has resumed as the best one."""
        if self.leads and self.path is not None:
            checkpoint.keep_best(self.path)

    def _adopt_threads(self, count: Any) -> None:
        """Use as many threads as when the run started: the order of sums depends on them."""
        alone = self.fabric.world_size == 1 and self.fabric.device.type == "cpu"
        typed = self.plan.config["hardware"].get("threads", "auto") != "auto"
        if not alone or typed or "OMP_NUM_THREADS" in os.environ:
            return
        if isinstance(count, int) and 1 <= count <= len(threads.own_cores()):
            torch.set_num_threads(count)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log the metrics after `step` steps."""
        self.step, self.metrics = step, metrics
        self.tracker.log(step, metrics)
        crashpoint("run.logged")
        if self.leads:
            self._write_status("running")

    def log_grid(self, step: int, grid: Tensor, name: str = previews.FOLDER) -> None:
        """Log a picture, uint8 (C, H, W)."""
        crashpoint("run.grid")
        self.tracker.log_image(step, name, grid)

    def has_grid(self, step: int) -> bool:
        """Whether the picture after `step` steps exists; the same on all ranks."""
        exists = previews.file(self.dir, step).exists() if self.leads else False
        return self.fabric.broadcast(exists)

    def save(self, step: int, entries: dict[str, Any], *, keep: int, is_best: bool) -> None:
        """Write a checkpoint after `step` steps; rank 0 writes.

        Args:
            entries: the training state, and what belongs to it.
            keep: the number of checkpoints that stay; -1: all.
            is_best: whether it is the best one so far.

        Raises:
            InputError: the disk is full.
        """
        if self.leads:
            state = {
                "step": step,
                "run_id": self.plan.hparams["run_id"],
                "hparams": self.plan.hparams,
                **entries,
                "data": self.fingerprint,
                "made_with": made_with(self.fabric),
                "chosen": self.choices,
            }
            run_dir.sync(self.dir / "metrics.jsonl")  # a resumed run does not write old lines again
            file = checkpoint.save(self.dir / "checkpoints", state, keep)
            if is_best:
                checkpoint.keep_best(file)
            self.saved = step
            self._write_status("running")
            self.tracker.log_files("model", step, [file], final=False)

    def save_snapshot(self, step: int, averages: dict[str, Any]) -> None:
        """Write a snapshot of the averaged weights after `step` steps; rank 0 writes.

        Raises:
            InputError: the disk is full.
        """
        if self.leads:
            snapshots.save(self.dir, step, self.plan.hparams["run_id"], averages)

    def forget_snapshots(self, step: int) -> None:
        """Delete the snapshots after the step that a run resumes from."""
        if self.leads:
            snapshots.forget_after(self.dir, step)

    def preempted(self, signal: int | None, how: str) -> None:
        """End the run early: a signal, a file in its folder or the death of its parent process
        requested it."""
        end = requests.end_state(self.dir)
        self.end, self.signal = end or "preempted", signal
        cause = "the end of the parent process"
        if signal is not None or end is not None:
            cause = "a signal" if signal is not None else f"the file {self.dir / requests.STOP}"
        self.say(f"stopped  by {cause}, {how}")


def number(value: Any) -> float:
    """A number read from a file, or 0 for anything else."""
    return float(value) if isinstance(value, int | float) else 0.0


def made_with(fabric: Fabric) -> dict[str, Any]:
    """The conditions that the last digits of a result depend on."""
    return {
        "torch": str(torch.__version__),
        "device": fabric.device.type,
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "precision": str(fabric.strategy.precision.precision),
    }
