"""The learning-rate schedule."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LearningRate:
    """Learning rate of the n-th step, n = 0, 1, ...: linear warm-up, constant, then decay.

    It is peak * min(1, (n + 1) / warmup_steps, decay). With S = lr_decay_start, N = total, the
    decay is

        inverse   S / (n + 1)
        cosine    (1 + cos(pi (n - S) / (N - S))) / 2    for n >= S
        linear    1 - (n - S) / (N - S)                  for n >= S

    cosine is eq. 5 of Loshchilov & Hutter 2017 (SGDR, arXiv:1608.03983) without restarts, with
    eta_min = 0, T_cur = n - S, T_i = N - S; linear is that of Defazio et al. 2023
    (arXiv:2310.07831). Both are 1 at n = S, and reach 0 at n = N, after the last step.

    inverse depends on the step alone: a run that is extended later equals one that was longer from
    the start. cosine and linear depend on the length of the run.

    Args:
        peak: the constant rate.
        warmup_steps: length of the warm-up, which starts at peak / warmup_steps.
        lr_decay_start: S. None: inverse does not decay, as in Ho et al. 2020; cosine and linear
            do from the end of the warm-up on.
        lr_decay: inverse, cosine or linear.
        total: N, the length of the run. None: it has no end, and cosine and linear do not decay.
    """

    peak: float
    warmup_steps: int
    lr_decay_start: int | None
    lr_decay: str = "inverse"
    total: int | None = None

    def __call__(self, n: int) -> float:
        warmup = (n + 1) / max(self.warmup_steps, 1)
        return self.peak * min(1, warmup, self.decay(n))

    def decay(self, n: int) -> float:
        """The decay of the n-th step, as a factor; with inverse above 1 before it begins."""
        if self.lr_decay == "inverse":
            return (self.lr_decay_start or math.inf) / (n + 1)
        if self.total is None or n < self.start:
            return 1.0
        left = (self.total - n) / (self.total - self.start) if n < self.total else 0.0
        # (1 + cos(pi (1 - left))) / 2, without cancellation near the end.
        return math.sin(math.pi / 2 * left) ** 2 if self.lr_decay == "cosine" else left

    @property
    def start(self) -> int:
        """S of cosine and linear."""
        return self.warmup_steps if self.lr_decay_start is None else self.lr_decay_start

    def describe(self, n: int) -> str | None:
        """A decay that depends on the length of the run, in a line, with the rate of the n-th step,
        from which the run goes on; with inverse, a warm-up that outlasts the run, or None."""
        if self.total is None:
            return None
        if self.lr_decay == "inverse":
            last = self.total - 1
            return (
                f"{self(last):.3g} at the last step: the warm-up to {self.peak:.3g} takes "
                f"{self.warmup_steps} steps (job.warmup_steps)"
                if self.total < self.warmup_steps
                else None
            )
        if self.start + 1 >= self.total:
            return (
                f"no decay: it begins after step {self.start}, and the run ends after {self.total}"
            )
        now = f", {self(n):.3g} at step {n}" if n else ""
        return f"{self.lr_decay} decay to 0 from step {self.start} to {self.total}{now}"
