"""Estimates of when the next preview comes and when the run ends, printed near its start."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ddpm.runner.terminal.progress import clock

WARM_UP = 2  # unmeasured steps: memory is allocated, kernels are chosen
STEPS = 20  # measured steps,
SECONDS = 3.0  # or on a CPU as many as fit into this time
TO_SAVE = 3600.0  # seconds to the next checkpoint from which a shorter interval is proposed
HORIZON = 100_000  # steps in which previews are counted; later ones are extrapolated


@dataclass(eq=False)
class Outlook:
    """Measures the first steps and prints the estimate once.

    Args:
        start, total: steps done before, and in the whole run.
        is_preview_step: whether a preview follows a step.
        preview_steps: duration of a preview, in training steps.
        device: synchronised when the measurement starts and ends.
        say: prints a line.
        evaluate_every: steps between evaluations; 0: there are none.
        evaluation_steps: duration of one, in training steps.
        save_every: steps between checkpoints; None: there is one, at the end.
        compiles: whether the first step compiles the network.
    """

    start: int
    total: int
    is_preview_step: Callable[[int], bool]
    preview_steps: float
    device: torch.device
    say: Callable[[str], None]
    evaluate_every: int = 0
    evaluation_steps: float = 0.0
    save_every: int | None = None
    compiles: bool = False

    def __post_init__(self) -> None:
        self.begin(self.start, self.compiles)

    def begin(self, step: int, compiles: bool) -> None:
        """Start a measurement after `step` steps."""
        self.compiles_since = time.perf_counter() if compiles else None
        self.first = step + WARM_UP
        self.began: float | None = None
        self.finished = False

    def after(self, step: int) -> float | None:
        """Called after `step` steps, before the preview, checkpoint or log line of the step.

        Returns the remaining seconds once, when they are known: on GPUs after the same step on all
        ranks.
        """
        if self.finished:
            return None
        if self.compiles_since is not None:
            self._wait()
            seconds = time.perf_counter() - self.compiles_since
            self.say(f"compile  {clock(seconds)} with the next step")
            self.compiles_since = None
        if step < self.first:
            return None
        if self.began is None:
            self._wait()
            self.began = time.perf_counter()
            return None
        over = self.device.type == "cpu" and time.perf_counter() - self.began > SECONDS
        pauses = self.is_preview_step(step) or self._is_evaluation_step(step)
        if not (over or pauses or step - self.first >= STEPS):
            return None
        self._wait()
        self.finished = True
        if step >= self.total:
            return None
        return self._print(step, (time.perf_counter() - self.began) / (step - self.first))

    def _is_evaluation_step(self, step: int) -> bool:
        return self.evaluate_every > 0 and step % self.evaluate_every == 0

    def _print(self, step: int, seconds: float) -> float:
        """Print the estimate from the seconds of a step; return the seconds to the end."""
        steps = range(step, min(self.total, step + HORIZON) + 1)
        previews = [n for n in steps if self.is_preview_step(n)]
        num_previews = len(previews) * (self.total + 1 - step) / len(steps)
        every, num_evaluations, evaluation = self.evaluate_every, 0, ""
        if every:
            num_evaluations = -(-self.total // every) - (step - 1) // every
            evaluation = f"each evaluation takes about {clock(seconds * self.evaluation_steps)}, "
        extra = self.preview_steps * num_previews + self.evaluation_steps * num_evaluations
        end = seconds * (self.total - step + extra)
        next_preview = ""
        if previews and self.preview_steps:
            first = seconds * (previews[0] - step + self.preview_steps)
            next_preview = f"the next picture in about {clock(first)}, "
        self.say(f"expect   {next_preview}{evaluation}the end in about {clock(end)}")
        self._propose_checkpoints(step, seconds)
        return end

    def _propose_checkpoints(self, step: int, seconds: float) -> None:
        """Say how to get a checkpoint within the hour, if the next one comes later."""
        every = self.save_every or self.total
        next_save = seconds * (min((step // every + 1) * every, self.total) - step)
        if next_save > TO_SAVE:
            hourly = max(1, int(TO_SAVE / seconds))
            self.say(
                f"note     the next checkpoint in about {clock(next_save)}; "
                f"job.save_every={hourly} saves one each hour"
            )

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
