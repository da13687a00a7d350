"""ema=several: averages with several decays, to be compared after the run."""

from collections.abc import Sequence

from torch import nn

from ddpm.ema.base import EMA


class Several(EMA):
    """d_i = min(decays[i], (1 + n) / (ramp + n)) at the n-th update: each average is the one that
    ema=simple would give with this decay, to the bit.

    Args:
        model: the network, before it is compiled or wrapped; it is copied.
        decay: job.ema_decay, which is not used.
        ramp: at least 1: job.ema_ramp.
        decays: each in [0, 1); the first is that of the previews.
    """

    def __init__(
        self, model: nn.Module, *, decay: float, ramp: float, decays: Sequence[float]
    ) -> None:
        self.decays, self.ramp = list(decays), ramp
        super().__init__(model, self.decays)

    def decay_at(self, n: int, number: int = 0) -> float:
        return min(self.decays[number], (1 + n) / (self.ramp + n))
