"""What the samplers share: which of the T steps they take, and the way through them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddpm.diffusion import Denoise, GaussianDiffusion
from ddpm.errors import InputError, nearest

RandnLike = Callable[[Tensor], Tensor]
SPACINGS = ("uniform", "quadratic", "trailing", "log_snr")
LEAST_LOG_SNR = -10.2  # Lu et al.'s clip of lambda = log-SNR / 2 at -5.1, where cosine runs away


class Sampler(ABC):
    """From x_T to x_0 over some of the T steps.

    Args:
        steps: how many of them; None: all.
        spacing: how they spread over 0..T-1, see `timesteps`.
    """

    def __init__(self, *, steps: int | None, spacing: str = "uniform") -> None:
        if steps is not None and steps < 1:
            raise InputError(f"sampler.steps={steps}: must be at least 1, or null for all.")
        if spacing not in SPACINGS:
            hint = nearest(str(spacing), SPACINGS)
            allowed = ", ".join(SPACINGS)
            raise InputError(f"sampler.spacing={spacing}: must be one of {allowed}.{hint}")
        self.steps = steps
        self.spacing = spacing

    def timesteps(
        self, diffusion: GaussianDiffusion, start: int | None = None
    ) -> list[tuple[int, int]]:
        """Pairs (t, s): from which step to which; s = -1 at the end stands for x_0.

        Args:
            start: the first t; None: T - 1.

        Raises:
            InputError: there are not so many steps.
        """
        ts = timesteps(diffusion, self.steps or diffusion.T, self.spacing)
        if start is not None:
            ts = [start, *(t for t in ts if t < start)]
        return list(zip(ts, [*ts[1:], -1], strict=True))

    def __call__(
        self,
        denoise: Denoise,
        diffusion: GaussianDiffusion,
        x_T: Tensor,
        randn_like: RandnLike = torch.randn_like,
        start: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield images like x_T (B, C, H, W), each a step less noisy, last of all x_0.

        Args:
            denoise: (x_t, t) -> what is believed of x_0.
            start: the t that x_T is noised to, where it is not T - 1.
        """
        x_t = x_T
        for t, s in self.timesteps(diffusion, start):
            x_t = self.p_sample(denoise, diffusion, x_t, t, s, randn_like)
            yield x_t

    @abstractmethod
    def p_sample(
        self,
        denoise: Denoise,
        diffusion: GaussianDiffusion,
        x_t: Tensor,
        t: int,
        s: int,
        randn_like: RandnLike,
    ) -> Tensor:
        """One step, from x_t to x_s with s < t; s = -1 stands for x_0."""


def timesteps(diffusion: GaussianDiffusion, steps: int, spacing: str = "uniform") -> list[int]:
    """`steps` different t of 0..T-1, the largest first, beginning with T - 1.

    uniform: evenly, down to 0. quadratic: their square roots evenly, so that most have little noise
    (Song et al. 2021, appendix D.2, but beginning at T - 1 instead of 0.8 T). trailing: evenly,
    down to T / steps - 1 (Lin et al. 2023, arXiv:2305.08891). log_snr: evenly in log-SNR, down to 0
    (Lu et al. 2022, arXiv:2211.01095).

    Raises:
        InputError: there are not so many.
    """
    T = diffusion.T
    if steps > T:
        raise InputError(f"sampler.steps={steps}: must be at most schedule.T={T}.")
    if spacing == "trailing":
        ts = (T - 1 - torch.arange(steps, dtype=torch.float64) * T / steps).flip(0)
    elif spacing == "quadratic":
        ts = torch.linspace(0, (T - 1) ** 0.5, steps, dtype=torch.float64) ** 2
    elif spacing == "log_snr":
        a = torch.tensor([diffusion.alphas_cumprod_at(t) for t in range(T)], dtype=torch.float64)
        log_snr = a.logit()
        wanted = torch.linspace(log_snr[0], log_snr[-1].clamp(min=LEAST_LOG_SNR), steps)
        ts = (log_snr[None] - wanted[:, None]).abs().argmin(1)
    else:
        ts = torch.linspace(0, T - 1, steps, dtype=torch.float64)
    chosen = [round(t) for t in ts.tolist()]
    chosen[-1] = T - 1
    for i in range(1, steps):  # no t twice: make way upwards, and at the upper end downwards
        chosen[i] = max(chosen[i], chosen[i - 1] + 1)
    for i in range(steps):
        chosen[i] = min(chosen[i], T - steps + i)
    return chosen[::-1]
