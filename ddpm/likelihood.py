"""The variational bound on -log p(x_0), in bits per dimension: its terms, and an estimate of it.

Eq. 5 of Ho et al. 2020 (arXiv:2006.11239): the prior's term, a KL for each step, and the
reconstruction of 8-bit pixels. Pure functions of tensors; coefficients are shaped to broadcast
against images. Elementwise results are in nats, bits are means over the dimensions of an image.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_BIN = 1 / 255  # grey levels lie 2 / 255 apart in [-1, 1]
DARKEST, BRIGHTEST = -0.999, 0.999  # beyond these, the bin is open
MIN_PROBABILITY = 1e-12


def bits(nats: Tensor) -> Tensor:
    """Nats of every element -> bits per dimension of every image: (B, ...) -> (B,)."""
    return nats.flatten(1).mean(1) / math.log(2)


def normal_kl(
    mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor
) -> Tensor:
    """KL(N(mean_1, e^log_variance_1) || N(mean_2, e^log_variance_2)), elementwise, in nats.

    All broadcast against each other; the log variances must be finite.
    """
    log_ratio = log_variance_1 - log_variance_2
    distance = (mean_1 - mean_2) ** 2 * torch.exp(-log_variance_2)
    return 0.5 * (log_ratio.expm1() - log_ratio + distance)


def discretized_log_likelihood(x_0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-probability of the grey level of x_0 under N(mean, e^log_std), elementwise, in nats.

    The integral over x_0 - 1/255 .. x_0 + 1/255, open at the darkest and the brightest level, at
    least 1e-12: Eq. 13 of Ho et al. 2020. Computed with the exact normal CDF (their code
    approximates it by a tanh), whose logarithm is accurate in float32 far out in both tails.

    Args:
        x_0: 8-bit images in [-1, 1].
        mean: broadcasts against x_0.
        log_std: logarithm of the standard deviation; broadcasts against x_0.
    """
    x, precision = x_0 - mean, torch.exp(-log_std)
    above, below = (x + HALF_BIN) * precision, (x - HALF_BIN) * precision
    log_cdf_above, log_cdf_below = torch.special.log_ndtr(above), torch.special.log_ndtr(below)
    # log(cdf_above - cdf_below); if both round to the same value, the minimum, not log 0.
    gap = (log_cdf_below - log_cdf_above).clamp(max=-MIN_PROBABILITY)
    inner = log_cdf_above + torch.log(-gap.expm1())
    log_probability = torch.where(
        x_0 < DARKEST,
        log_cdf_above,
        torch.where(x_0 > BRIGHTEST, torch.special.log_ndtr(-below), inner),
    )
    return log_probability.clamp(min=math.log(MIN_PROBABILITY))


def prior_bits(x_0: Tensor, alphas_cumprod_T: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || N(0, I)) in bits per dimension: (B, ...) -> (B,).

    Args:
        x_0: images in [-1, 1].
        alphas_cumprod_T: alphas_cumprod of the last step, a scalar or like x_0; below 1.
    """
    zero = torch.zeros_like(x_0)
    return bits(
        normal_kl(alphas_cumprod_T.sqrt() * x_0, torch.log1p(-alphas_cumprod_T), zero, zero)
    )


def vb_term(
    x_0: Tensor,
    mean_q: Tensor,
    log_variance_q: Tensor,
    mean_p: Tensor,
    log_variance_p: Tensor,
    t: Tensor,
) -> Tensor:
    """The bound's term of step t, in bits per dimension: (B,).

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and -log p(x_0 | x_t) where t = 0: L_{t-1} and
    L_0 of Eq. 5. The hybrid loss of Nichol and Dhariwal 2021 (arXiv:2102.09672) detaches mean_p.

    Args:
        x_0: 8-bit images in [-1, 1], (B, ...).
        mean_q, log_variance_q: of the posterior. At t = 0 its variance is 0; pass any finite log
            variance, such as that of t = 1.
        mean_p, log_variance_p: of the network's step.
        t: (B,) steps, int64.
    """
    kl = bits(normal_kl(mean_q, log_variance_q, mean_p, log_variance_p))
    reconstruction = bits(-discretized_log_likelihood(x_0, mean_p, 0.5 * log_variance_p))
    return torch.where(t == 0, reconstruction, kl)


def schedule_bound(
    log_snr: Tensor,
    predict_x_0: Callable[[Tensor, Tensor], Tensor],
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
) -> Tensor:
    """Unbiased estimate of the whole bound, in bits per dimension: a scalar, the loss of log_snr.

    Eq. 11 and 13 of Kingma et al. 2021 (arXiv:2107.00630) for the chain of T noise levels, whose
    steps back have the posterior's variance. It has three parts: the prior's KL at level T - 1; the
    KLs of the steps from t to t - 1, 1/2 (SNR_{t-1} - SNR_t) ||x_0 - x_0_hat(x_t, t)||^2 summed
    over t = 1..T-1; and the reconstruction of x_0 from level 0, a discretised Gaussian around
    x_t / sqrt(a), a = alphas_cumprod_0, of variance (1 - a) / a. The sum is T times its mean over
    0..T-1, to which t = 0 contributes nothing, so t is drawn as for any loss.

    Args:
        log_snr: (T,) log(alphas_cumprod / (1 - alphas_cumprod)), falling; differentiated, also
            through x_t.
        predict_x_0: (x_t (B, ...), t (B,)) -> x_0_hat (B, ...).
        x_0: 8-bit images in [-1, 1], (B, ...).
        t: (B,) steps, int64, uniform on 0..T-1.
        eps: standard normal noise like x_0, used for both levels, t and 0.
    """
    levels = log_snr.reshape(-1, *[1] * (x_0.dim() - 1))  # (T, 1, ...)
    signal, noise = (0.5 * F.logsigmoid(levels)).exp(), (0.5 * F.logsigmoid(-levels)).exp()
    zero = torch.zeros_like(x_0)
    prior = bits(normal_kl(signal[-1] * x_0, F.logsigmoid(-levels[-1]), zero, zero))
    # x_t / sqrt(a) = x_0 + eps / sqrt(SNR)
    log_std = -0.5 * levels[0]
    likelihood = discretized_log_likelihood(x_0, x_0 + log_std.exp() * eps, log_std)
    x_t = signal[t] * x_0 + noise[t] * eps
    error = bits((x_0 - predict_x_0(x_t, t)) ** 2)
    # SNR_{t-1} - SNR_t = SNR_t (SNR_{t-1} / SNR_t - 1), and 0 for t = 0
    snr_fall = log_snr.exp() * (-log_snr.diff(prepend=log_snr[:1])).expm1()  # (T,)
    steps = len(log_snr) * 0.5 * snr_fall[t] * error
    return (prior + steps + bits(-likelihood)).mean()
