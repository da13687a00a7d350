"""ema=power: averages whose length grows with the run, and snapshots to rebuild any other length.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
(arXiv:2312.02696), section 3.
"""

from collections.abc import Sequence

from torch import nn

from ddpm.ema.base import EMA
from ddpm.ema.profiles import exponent


class Power(EMA):
    """After t steps the weights of step tau have the share of tau^gamma in the average: d at step t
    is (1 - 1/t)^(gamma + 1), their equation (9). The width of that profile is a fixed share of the
    run, sigma_rel, so the first steps are forgotten without a ramp.

    Args:
        model: the network, before it is compiled or wrapped; it is copied.
        decay, ramp: job.ema_decay and job.ema_ramp, which are not used.
        sigma_rel: lengths of the averages, standard deviations of their profiles relative to the
            length of the run; the first is that of the previews.
        snapshots: how often the averages are stored over the run.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float,
        ramp: float,
        sigma_rel: Sequence[float],
        snapshots: int,
    ) -> None:
        self.exponents = [exponent(length) for length in sigma_rel]
        self.snapshots = snapshots
        super().__init__(model, sigma_rel)

    def decay_at(self, n: int, number: int = 0) -> float:
        return (1 - 1 / (n + 1)) ** (self.exponents[number] + 1)
