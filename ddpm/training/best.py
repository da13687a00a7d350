"""The best value of a figure so far: which checkpoint is kept, and when a run has levelled off."""

import math
from dataclasses import dataclass
from typing import Any

FIGURES = ("eval/loss", "eval/loss_raw")  # lower is better


@dataclass
class Best:
    """Follows a figure over the validations of a run.

    Args:
        figure: one of FIGURES, or None: no checkpoint is kept.
        patience: validations without a better value after which the run ends; None: never.
        value, step: the best value of `watched`, and its step.
        waited: validations since then.
        kept, kept_step: the best value among checkpoints, and the step of that checkpoint.
    """

    figure: str | None = None
    patience: int | None = None
    value: float = math.inf
    step: int = 0
    waited: int = 0
    kept: float = math.inf
    kept_step: int = 0

    @property
    def watched(self) -> str:
        return self.figure or FIGURES[0]

    @property
    def levelled_off(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    @property
    def reason(self) -> str:
        """Why a run that has levelled off ends."""
        return (
            f"job.patience={self.patience}: {self.watched} was best after step {self.step} "
            f"({self.value:.5g}), and no better in {self.waited} validations since"
        )

    def validated(self, step: int, metrics: dict[str, float]) -> None:
        """Take note of a validation after `step` steps; a value that is not finite is no better."""
        if (value := metrics[self.watched]) < self.value:
            self.value, self.step, self.waited = value, step, 0
        else:
            self.waited += 1

    def saving(self, step: int, metrics: dict[str, float]) -> None:
        """Take note, before a checkpoint is written, of the figures of the same step."""
        value = math.inf if self.figure is None else metrics.get(self.figure, math.inf)
        if value < self.kept:
            self.kept, self.kept_step = value, step

    def state(self) -> dict[str, Any]:
        """The entry of a checkpoint."""
        names = ("value", "step", "waited", "kept", "kept_step")
        return {"figure": self.watched, **{name: getattr(self, name) for name in names}}

    def restore(self, state: Any) -> None:
        """Restore an entry; one of another figure, of a damaged file or none at all is left out."""
        if not isinstance(state, dict) or state.get("figure") != self.watched:
            return
        numbers = {k: v for k, v in state.items() if k in self.state() and k != "figure"}
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers.values()):
            vars(self).update(numbers)
