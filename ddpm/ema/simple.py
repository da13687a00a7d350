"""ema=simple: one average with the decay of the job."""

from torch import nn

from ddpm.ema.base import EMA


class Simple(EMA):
    """d = min(decay, (1 + n) / (ramp + n)) at the n-th update. Without the ramp (ramp = 1, as in Ho
    et al.) the random initialisation would still have a tenth of the weight after 23,000 steps at
    decay 0.9999.

    Args:
        model: the network, before it is compiled or wrapped; it is copied.
        decay: d in [0, 1): job.ema_decay.
        ramp: at least 1: job.ema_ramp.
    """

    def __init__(self, model: nn.Module, *, decay: float, ramp: float) -> None:
        self.decay, self.ramp = decay, ramp
        super().__init__(model, [decay])

    def decay_at(self, n: int, number: int = 0) -> float:
        return min(self.decay, (1 + n) / (self.ramp + n))
