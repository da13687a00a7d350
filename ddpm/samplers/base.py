"""What samplers share: the choice of steps and the loop over them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.limits.parts import check_limits

Randn = Callable[[Tensor], Tensor]  # x -> standard normal noise like x
MIN_LOG_SNR = -10.2  # Lu et al. clip lambda = log-SNR / 2 at -5.1, because cosine's diverges
PURE_NOISE = 200.0  # sigma / alpha; linear begins at 157, cosine at 20,000


@dataclass(kw_only=True, eq=False)
class Sampler(ABC):
    """From x_T to x_0 in `steps` of the T steps.

    Args:
        steps: number of steps; None: all T.
        spacing: their distribution over 0..T-1, see `timesteps`.
        rho: of the spacing "karras".
    """

    steps: int | None
    spacing: str = "uniform"
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_limits("sampler", steps=self.steps, spacing=self.spacing, rho=self.rho)

    def timesteps(
        self, diffusion: GaussianDiffusion, start: int | None = None
    ) -> list[tuple[int, int]]:
        """Pairs (t, s) of each step, from x_t to x_s; the last s is -1, which stands for x_0.

        Args:
            start: the first t; None: T - 1.

        Raises:
            InputError: `steps` exceeds T.
        """
        ts = timesteps(diffusion, self.steps or diffusion.T, self.spacing, self.rho)
        if start is not None:
            ts = [start, *(t for t in ts if t < start)]
        return list(zip(ts, [*ts[1:], -1], strict=True))

    def __call__(
        self,
        denoiser: Denoiser,
        x_T: Tensor,
        randn: Randn = torch.randn_like,
        start: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield the images after each step, x_0 last: (B, C, H, W), like x_T.

        Args:
            denoiser: the network.
            x_T: noise, or images noised to step `start`.
            randn: source of the noise that stochastic samplers add.
            start: the first t; None: T - 1.
        """
        x_t = x_T
        for t, s in self.timesteps(denoiser.diffusion, start):
            x_t = self.p_sample(denoiser, x_t, t, s, randn)
            yield x_t

    @abstractmethod
    def p_sample(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, randn: Randn) -> Tensor:
        """One step, from x_t to x_s with s < t; s = -1 stands for x_0, where sigma is 0."""


def timesteps(
    diffusion: GaussianDiffusion, steps: int, spacing: str = "uniform", rho: float = 7.0
) -> list[int]:
    """`steps` different t of 0..T-1, in falling order, from T - 1.

    uniform: evenly, down to 0. quadratic: their square roots evenly, so that most have little noise
    (Song et al. 2021, appendix D.2, but from T - 1 instead of 0.8 T). trailing: evenly, down to
    T / steps - 1 (Lin et al. 2023, arXiv:2305.08891). log_snr: evenly in log-SNR, down to 0
    (Lu et al. 2022, arXiv:2211.01095). karras: evenly in (sigma / alpha)^(1 / rho), down to 0
    (Karras et al. 2022, arXiv:2206.00364, Eq. 5).

    Raises:
        InputError: `steps` exceeds T.
    """
    T = diffusion.T
    if steps > T:
        raise InputError(f"sampler.steps={steps}: must be at most schedule.T={T}.")
    if spacing == "trailing":
        ts = (T - 1 - torch.arange(steps, dtype=torch.float64) * T / steps).flip(0)
    elif spacing == "quadratic":
        ts = torch.linspace(0, (T - 1) ** 0.5, steps, dtype=torch.float64) ** 2
    elif spacing in ("log_snr", "karras"):
        half = [half_log_snr(*diffusion.alpha_sigma(t)) for t in range(T)]
        log_snr = 2 * torch.tensor(half, dtype=torch.float64)
        last = log_snr[-1].clamp(min=MIN_LOG_SNR)
        if spacing == "karras":
            first, end = ((-level / (2 * rho)).exp() for level in (log_snr[0], last))
            levels = -2 * rho * torch.linspace(first, end, steps, dtype=torch.float64).log()
        else:
            levels = torch.linspace(log_snr[0], last, steps)
        ts = (log_snr[None] - levels[:, None]).abs().argmin(1)
    else:
        ts = torch.linspace(0, T - 1, steps, dtype=torch.float64)
    chosen = [round(t) for t in ts.tolist()]
    chosen[-1] = T - 1
    for i in range(1, steps):  # no t twice: move up, and at the upper end down
        chosen[i] = max(chosen[i], chosen[i - 1] + 1)
    for i in range(steps):
        chosen[i] = min(chosen[i], T - steps + i)
    return chosen[::-1]


def half_log_snr(alpha: float, sigma: float) -> float:
    """lambda = log(alpha / sigma); -inf for pure noise."""
    return math.log(alpha / sigma) if alpha > 0 else -math.inf
