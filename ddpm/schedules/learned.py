"""A learned noise schedule: the monotone network of Variational Diffusion Models."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.errors import InputError
from ddpm.limits.parts import check_limits

# Range of log-SNR: from noise of 22,000 times the signal to a hundredth of a grey level. Both ends
# stay inside, so that no alphas_cumprod is 0 or 1 in float64.
MIN_LOG_SNR, MAX_LOG_SNR = -20.0, 20.0
MIN_FALL = 2.0  # of log-SNR from the first step to the last
STRAIGHT = 0.01  # share of the fall that is linear in t, so that steps differ even in float32
STEEPNESS = 16.0  # initial steepness of the sigmoids; their sum is then a straight line
MARGIN = 0.25  # by which their centres extend beyond [0, 1], for the same reason


class LearnedSchedule(nn.Module):
    """log-SNR as a strictly falling function of t with trainable parameters.

    Section 3.2 and appendix of Kingma et al. 2021 (arXiv:2107.00630): with u = t / (T - 1) and
    g(u) = l1(u) + l3(sigmoid(l2(l1(u)))), whose weights are positive, -log-SNR is g, normalised to
    go from 0 to 1 and then scaled to its two ends. Normalised, g does not depend on l1's weight or
    the biases of l1 and l3: l1(u) is u here, and l3 has no bias. Both ends are learned, too; the
    first stays above the last.

    The fixed schedules are functions that return betas; here `betas()` computes the current ones.
    Initialisation is not random.

    Args:
        T: steps.
        log_snr_start: initial log-SNR at t = 0, natural logarithm.
        log_snr_end: initial log-SNR at t = T - 1; with 8 or more sigmoids the initial log-SNR is
            linear in t to within 0.2 % of its fall.
        hidden: number of sigmoids in the network.

    Raises:
        InputError: T is below 2, `hidden` below 1, or log-SNR would not fall by more than 2 within
            (-20, 20).
    """

    def __init__(
        self,
        *,
        T: int = 1000,
        log_snr_start: float = 9.21,
        log_snr_end: float = -10.1,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        check_limits("schedule", T=T, hidden=hidden)
        if T < 2:
            raise InputError(f"schedule.T={T}: must be at least 2 for schedule=learned.")
        if not MIN_LOG_SNR < log_snr_end < log_snr_start - MIN_FALL < MAX_LOG_SNR - MIN_FALL:
            raise InputError(
                f"schedule.log_snr_start={log_snr_start}, schedule.log_snr_end={log_snr_end}: "
                f"learned needs {MIN_LOG_SNR:g} < log_snr_end < log_snr_start - {MIN_FALL:g} and "
                f"log_snr_start < {MAX_LOG_SNR:g}."
            )
        self.T = T
        # The ends, as fractions of the range that each can take.
        lowest_start = MIN_LOG_SNR + MIN_FALL
        start = (log_snr_start - lowest_start) / (MAX_LOG_SNR - lowest_start)
        end = (log_snr_end - MIN_LOG_SNR) / (log_snr_start - lowest_start)
        self.start_logit = nn.Parameter(torch.tensor(start).logit())
        self.end_logit = nn.Parameter(torch.tensor(end).logit())
        # Equal sigmoids with evenly spaced centres: their sum is a straight line.
        centres = (torch.arange(hidden) + 0.5) / hidden * (1 + 2 * MARGIN) - MARGIN
        self.weight_2 = nn.Parameter(torch.full((hidden,), inverse_softplus(STEEPNESS)))
        self.bias_2 = nn.Parameter(-STEEPNESS * centres)
        self.weight_3 = nn.Parameter(torch.full((hidden,), inverse_softplus(4.0)))

    def forward(self) -> Tensor:
        """`log_snr`, for wrappers that call the module."""
        return self.log_snr()

    def log_snr(self) -> Tensor:
        """log(alphas_cumprod / (1 - alphas_cumprod)) of all steps: (T,), float32, differentiable.

        Strictly falling for all parameters, up to T = 10,000.
        """
        return self._log_snr().float()

    @torch.no_grad()
    def betas(self) -> Tensor:
        """Current variances of the forward steps: (T,), float64, each in (0, 1).

        beta_t = 1 - alphas_cumprod_t / alphas_cumprod_{t-1}, without cancellation in terms of
        log-SNR: sigmoid(-log_snr_t) (1 - SNR_t / SNR_{t-1}).
        """
        log_snr = self._log_snr()
        fall = log_snr.diff(prepend=log_snr.new_full((1,), math.inf))  # (T,); before t = 0 is x_0
        return -(-log_snr).sigmoid() * fall.expm1()

    def _log_snr(self) -> Tensor:
        """log-SNR in float64, in which the sums of the network stay monotone: (T,)."""
        lowest_start = MIN_LOG_SNR + MIN_FALL
        start = lowest_start + (MAX_LOG_SNR - lowest_start) * self.start_logit.double().sigmoid()
        end = MIN_LOG_SNR + (start - lowest_start) * self.end_logit.double().sigmoid()
        u = torch.linspace(0, 1, self.T, dtype=torch.float64, device=self.weight_2.device)
        g = self._g(u)
        g = STRAIGHT * u + (1 - STRAIGHT) * (g - g[0]) / (g[-1] - g[0])
        return start + (end - start) * g

    def _g(self, u: Tensor) -> Tensor:
        """u + l3(sigmoid(l2(u))) with positive weights: (T,) -> (T,)."""
        weight_2, weight_3 = (F.softplus(w.double()) for w in (self.weight_2, self.weight_3))
        features = (u[:, None] * weight_2 + self.bias_2.double()).sigmoid()  # (T, hidden)
        return u + features @ (weight_3 / len(weight_3))


def inverse_softplus(x: float) -> float:
    return math.log(math.expm1(x))
