"""The best value of a metric so far: which checkpoint is kept, and when a run has levelled off."""

import math
from dataclasses import dataclass
from typing import Any

LOSS = "eval/loss"


@dataclass
class Best:
    """Tracks a metric over a run, to keep the best checkpoint and to stop early.

    Args:
        metric: its name in the log, like eval/loss; None: no checkpoint is kept.
        patience: measurements without a better value after which the run ends; None: never.
        sign: -1 if lower values are better, 1 if higher ones are.
        value, step: the best value of `watched`, and its step; not finite: there is none yet.
        waited: measurements since then.
        kept, kept_step: the best value among checkpoints, and the step of that checkpoint.
        evaluated: the last step whose evaluation this takes into account.
    """

    metric: str | None = None
    patience: int | None = None
    sign: int = -1
    value: float = math.inf
    step: int = 0
    waited: int = 0
    kept: float = math.inf
    kept_step: int = 0
    evaluated: int = 0

    @property
    def watched(self) -> str:
        return self.metric or LOSS

    @property
    def levelled_off(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    @property
    def reason(self) -> str:
        """Why a run that has levelled off ends."""
        return (
            f"job.patience={self.patience}: {self.watched} was best after step {self.step} "
            f"({self.value:.5g}), and no better in {self.waited} measurements since"
        )

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics measured after `step` steps; a value that is not finite is no better."""
        if (value := metrics.get(self.watched)) is None:
            return
        if self._is_better(value, self.value):
            self.value, self.step, self.waited = value, step, 0
        else:
            self.waited += 1

    def would_be_best(self, metrics: dict[str, float]) -> bool:
        """Whether a checkpoint with these metrics would be the best one."""
        return self.metric in metrics and self._is_better(metrics[self.metric], self.kept)

    def record_checkpoint(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a checkpoint, before it is written."""
        if self.metric is not None and self.would_be_best(metrics):
            self.kept, self.kept_step = metrics[self.metric], step

    def _is_better(self, value: float, than: float) -> bool:
        if not math.isfinite(value):
            return False
        return not math.isfinite(than) or self.sign * value > self.sign * than

    def state(self) -> dict[str, Any]:
        """The entry of a checkpoint."""
        names = ("value", "step", "waited", "kept", "kept_step", "evaluated")
        return {"figure": self.watched, **{name: getattr(self, name) for name in names}}

    def restore(self, state: Any) -> None:
        """Restore an entry, unless it is missing or damaged. Of an entry of another metric, only
        `evaluated` is restored."""
        if not isinstance(state, dict):
            return
        numbers = {k: v for k, v in state.items() if k in self.state() and k != "figure"}
        if state.get("figure") != self.watched:
            numbers = {k: v for k, v in numbers.items() if k == "evaluated"}
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers.values()):
            vars(self).update(numbers)
