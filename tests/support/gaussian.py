"""Data whose best denoiser is known in closed form: every pixel is N(MEAN, STD^2).

With a = alphas_cumprod, x_t has the variance v = a STD^2 + 1 - a, and the best x_0_hat is
E[x_0 | x_t] = MEAN + sqrt(a) STD^2 / v (x_t - sqrt(a) MEAN). Computed in float64
from `alphas_cumprod_at` alone.
"""

import math

import torch

from ddpm.denoising import Denoiser, Prediction
from ddpm.diffusion import GaussianDiffusion
from ddpm.objectives.edm import EDM
from ddpm.objectives.eps import Eps
from ddpm.objectives.v import V
from ddpm.objectives.velocity import Velocity
from ddpm.objectives.x_0 import X0
from ddpm.schedules.cosine import cosine
from ddpm.schedules.learned import LearnedSchedule
from ddpm.schedules.linear import linear
from ddpm.schedules.quadratic import quadratic
from ddpm.schedules.sigmoid import sigmoid

MEAN, STD = 0.2, 0.15  # far enough inside [-1, 1] that clipping has no effect
OBJECTIVES = {"eps": Eps, "x_0": X0, "v": V}
ALL_OBJECTIVES = {
    **OBJECTIVES,
    "velocity": Velocity,
    **{f"edm {s}": lambda s=s, **o: EDM(sigma_data=s, **o) for s in (0.5, 1.0)},
}
SCHEDULES = {
    "linear": lambda **o: linear(1000, 1e-4, 0.02, **o),
    "quadratic": lambda **o: quadratic(1000, 1e-4, 0.02, **o),
    "cosine": lambda **o: cosine(1000, 0.008, 0.999, **o),
    "sigmoid": lambda **o: sigmoid(1000, -3.0, 3.0, 1.0, 0.999, **o),
    "learned": lambda: LearnedSchedule(T=1000, log_snr_start=9.21, log_snr_end=-10.1, hidden=256),
}


def diffusion_of(schedule="linear", objective="eps", **options):
    """A process of 1000 steps; a schedule "... to zero" has zero terminal SNR."""
    name, *zero = schedule.split(" to ")
    betas = SCHEDULES[name](**({"zero_terminal_snr": True} if zero else {}))
    return GaussianDiffusion(betas=betas, objective=OBJECTIVES[objective](**options))


def levels(diffusion, t):
    """alphas_cumprod at t (B,): float64 (B, 1, 1, 1)."""
    steps, which = t.unique(return_inverse=True)
    a = [diffusion.alphas_cumprod_at(i) for i in steps.tolist()]
    return torch.tensor(a, dtype=torch.float64)[which].reshape(-1, 1, 1, 1)


def best_x_0(x_t, a, mean=MEAN, std=STD):
    """E[x_0 | x_t] of one component, float64."""
    return mean + a**0.5 * std**2 / variance(a, std) * (x_t.double() - a**0.5 * mean)


def variance(a, std=STD):
    """Variance of x_t."""
    return a * std**2 + 1 - a


def answer(objective, x_t, a, x_0):
    """The output of a network of this objective that predicts x_0; float32."""
    alpha, sigma = a**0.5, (1 - a) ** 0.5
    eps = (x_t.double() - alpha * x_0) / sigma
    return {"eps": eps, "x_0": x_0, "v": alpha * eps - sigma * x_0}[objective].float()


def best_model(diffusion, objective="eps"):
    """The best network."""

    def model(x_t, t):
        a = levels(diffusion, t)
        return answer(objective, x_t, a, best_x_0(x_t, a))

    return model


def best_network(diffusion):
    """The best network of any objective. It has what the objective gives a network: for EDM the
    scaled x_t and c_noise, from which it finds x_t and alphas_cumprod."""
    objective = diffusion.objective

    def model(given, t):
        a = levels_given(diffusion, t)
        if isinstance(objective, EDM):
            given = given.double() * (a * objective.sigma_data**2 + 1 - a).sqrt()
        x_0 = best_x_0(given, a)
        alpha, sigma = a.sqrt(), (1 - a).sqrt()
        eps = (given.double() - alpha * x_0) / sigma
        return objective.target(x_0, eps, alpha, sigma).float()

    return model


def levels_given(diffusion, t):
    """alphas_cumprod for the time that a network is given, (B,): t, or c_noise of EDM; float64
    (B, 1, 1, 1)."""
    if isinstance(diffusion.objective, EDM):
        return (1 / (1 + (8 * t.double()).exp())).reshape(-1, 1, 1, 1)
    return levels(diffusion, t)


class Known(Denoiser):
    """A denoiser given by a function (x_t, t) -> Prediction, without a network."""

    def __init__(self, diffusion, function):
        super().__init__(function, diffusion)

    def __call__(self, x_t, t):
        return self.model(x_t, t)


def best_denoise(diffusion, fraction=None):
    """The best denoiser in float64, without a network."""

    def denoise(x_t, t):
        a = diffusion.alphas_cumprod_at(t)
        x_0 = best_x_0(x_t, a)
        return Prediction(
            x_0, (x_t - math.sqrt(a) * x_0) / math.sqrt(1 - a), fraction and fraction(t)
        )

    return Known(diffusion, denoise)
