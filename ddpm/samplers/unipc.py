"""UniPC: each network evaluation also corrects the step that led to it."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import expm1, factorial, isinf

import torch
from torch import Tensor

from ddpm.denoising import Denoiser
from ddpm.limits.parts import check_limits
from ddpm.samplers.base import PURE_NOISE, Randn, Sampler, half_log_snr

History = list[tuple[int, Tensor]]  # t and x_0_hat of the last steps, the newest first


@dataclass(kw_only=True, eq=False)
class UniPC(Sampler):
    """UniPC-p of Zhao et al. 2023 (arXiv:2302.04867) that predicts x_0, with B(h) = e^h - 1, on
    `steps` of T steps.

    The predictor UniP-p (Eq. 3) extrapolates from the last p values of x_0_hat. Once x_0_hat is
    known at the end of the step, the corrector UniC-p (Eq. 5) takes it into account and raises the
    order to p + 1, at no further evaluation. The first steps have fewer values, and the last ones
    are of lower order, too; the last, to x_0, is of order 1. One network evaluation a step.

    Args:
        steps: number of network evaluations; None: all T.
        order: p: 1, 2 or 3.
        spacing, rho: distribution of the steps over 0..T-1.
    """

    steps: int | None = 10
    order: int = 3
    spacing: str = "log_snr"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_limits("sampler", order=self.order)

    def __call__(
        self,
        denoiser: Denoiser,
        x_T: Tensor,
        randn: Randn = torch.randn_like,
        start: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield the images after each step, x_0 last: (B, C, H, W), like x_T."""
        pairs, x_t = self.timesteps(denoiser.diffusion, start), x_T
        before: Tensor | None = None  # x at the beginning of the last step
        history: History = []
        order = 0
        for number, (t, s) in enumerate(pairs):
            x_0 = denoiser(x_t, t).x_0
            if before is not None:
                x_t = self.step(denoiser, before, history[:order], t, x_0, x_t)
            history = [(t, x_0), *history][: self.order]
            order = min(self.order, len(history), len(pairs) - number)
            before, x_t = x_t, self.step(denoiser, x_t, history[:order], s)
            yield x_t

    def p_sample(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, randn: Randn) -> Tensor:
        """A single step, without an earlier one: of order 1."""
        return self.step(denoiser, x_t, [(t, denoiser(x_t, t).x_0)], s)

    def step(
        self,
        denoiser: Denoiser,
        x_t: Tensor,
        history: History,
        s: int,
        x_0_s: Tensor | None = None,
        predicted: Tensor | None = None,
    ) -> Tensor:
        """x_s from x_t and the x_0_hat of the last steps, that of x_t first: as many as the order.

        Args:
            x_0_s: x_0_hat at s, for the corrector; None: the predictor's step.
            predicted: x_s of the predictor.
        """
        (t, x_0), *older = history
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.alpha_sigma(t), denoiser.alpha_sigma(s)
        if x_0_s is not None and sigma_t > PURE_NOISE * alpha_t:
            assert predicted is not None
            return predicted  # the step is too long to be corrected from its ends, as in Heun
        if sigma_s == 0:
            return x_0
        decay = sigma_s / sigma_t
        gain = alpha_s - decay * alpha_t  # alpha_s (1 - e^-h)
        lambda_t = half_log_snr(alpha_t, sigma_t)
        h = half_log_snr(alpha_s, sigma_s) - lambda_t
        places = [(half_log_snr(*denoiser.alpha_sigma(p)) - lambda_t) / h for p, _ in older]
        slopes = [(x - x_0) / r for (_, x), r in zip(older, places, strict=True)]
        usable = [i for i, r in enumerate(places) if not isinf(r)]  # none of pure noise
        places, slopes = [places[i] for i in usable], [slopes[i] for i in usable]
        if x_0_s is not None:
            places, slopes = [*places, 1.0], [*slopes, x_0_s - x_0]
        for weight, slope in zip(weights(places, h), slopes, strict=True):
            x_0 = x_0 + weight * slope
        return decay * x_t + gain * x_0


def weights(places: list[float], h: float) -> list[float]:
    """Weights of the divided differences at these places, relative to the step from 0 to 1.

    They solve the equations of order (Eq. 4): the step is right for polynomials up to the number of
    places. A single place has the weight 1/2, which is right in the limit of small h (section 3.3).
    """
    if len(places) <= 1:
        return [0.5] * len(places)
    phi = expm1(-h) / -h - 1  # of e^-h: h phi_{k+1} without its sign
    wanted, powers = [], []
    for k in range(1, len(places) + 1):
        wanted.append(phi * factorial(k) / expm1(-h))
        powers.append([r ** (k - 1) for r in places])
        phi = phi / -h - 1 / factorial(k + 1)
    matrix = torch.tensor(powers, dtype=torch.float64)
    solved: list[float] = torch.linalg.solve(
        matrix, torch.tensor(wanted, dtype=torch.float64)
    ).tolist()
    return solved
