"""What a training run tells at its start: when its first picture comes, and when it ends."""

import time
from collections.abc import Callable

import torch

from ddpm.runner.terminal.progress import clock

WARM_UP = 2  # steps that are not measured: memory is allocated, kernels are chosen
STEPS = 20  # that are measured,
SECONDS = 3.0  # or on a CPU so many as fit into this time
FAR = 100_000  # steps that are asked whether they are looked at; the rest is taken to be like them


class Outlook:
    """Measures the first steps, and tells once what follows from them.

    Args:
        start, total: the steps done before, and those of the whole run.
        is_seen_at: whether the network is looked at after so many steps.
        look: how long that takes, in training steps.
        device: is waited for once, before the measurement ends.
        say: prints a line.
        compiles: whether the first step compiles the network.
    """

    def __init__(
        self,
        start: int,
        total: int,
        is_seen_at: Callable[[int], bool],
        look: float,
        device: torch.device,
        say: Callable[[str], None],
        *,
        compiles: bool = False,
    ) -> None:
        self.total, self.is_seen_at, self.look = total, is_seen_at, look
        self.device, self.say = device, say
        self.begin(start, compiles)

    def begin(self, step: int, compiles: bool) -> None:
        """Measure from here on: `step` steps are done."""
        self.compiles_since = time.perf_counter() if compiles else None
        self.first = step + WARM_UP
        self.began: float | None = None
        self.told = False

    def after(self, step: int) -> float | None:
        """To be called when `step` steps are done, before anything else than steps is.

        Returns the seconds that are left, once: when they are known. That is after the same step on
        all GPUs of a run.
        """
        if self.told:
            return None
        if self.compiles_since is not None:
            self._wait()
            self.say(
                f"compile  {clock(time.perf_counter() - self.compiles_since)} with the next step"
            )
            self.compiles_since = None
        if step < self.first:
            return None
        if self.began is None:
            self._wait()
            self.began = time.perf_counter()
            return None
        over = self.device.type == "cpu" and time.perf_counter() - self.began > SECONDS
        if not (over or step - self.first >= STEPS or self.is_seen_at(step)):
            return None
        self._wait()
        self.told = True
        if step >= self.total:
            return None
        return self._tell(step, (time.perf_counter() - self.began) / (step - self.first))

    def _tell(self, step: int, seconds: float) -> float:
        """Say it, from the seconds that a step takes; returns those to the end."""
        known = range(step, min(self.total, step + FAR) + 1)
        seen = [n for n in known if self.is_seen_at(n)]
        looks = len(seen) * (self.total + 1 - step) / len(known)
        end = seconds * (self.total - step + self.look * looks)
        first = seconds * (seen[0] - step + self.look) if seen and self.look else None
        picture = "" if first is None else f"the next picture in about {clock(first)}, "
        self.say(f"expect   {picture}the end in about {clock(end)}")
        return end

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
