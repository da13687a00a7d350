"""The learning-rate schedule."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LearningRate:
    """Learning rate of the n-th step, n = 0, 1, ...: linear warm-up, constant, then decay as 1 / n.

    It depends on the step alone, not on the length of the run: a run that is extended later equals
    one that was longer from the start.

    Args:
        peak: the constant rate.
        warmup_steps: length of the warm-up, which starts at peak / warmup_steps.
        lr_decay_start: the step from which the rate is peak * lr_decay_start / n; None: no decay,
            as in Ho et al. 2020.
    """

    peak: float
    warmup_steps: int
    lr_decay_start: int | None

    def __call__(self, n: int) -> float:
        warmup = (n + 1) / max(self.warmup_steps, 1)
        decay = (self.lr_decay_start or math.inf) / (n + 1)
        return self.peak * min(1, warmup, decay)
