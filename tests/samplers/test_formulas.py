# ruff: noqa: B023 - the functions of a loop are called within it
"""Samplers in (alpha, sigma) against the same formulas in alphas_cumprod, with their special case
for the last step: a frozen copy, in float64, on all schedules."""

import math
from decimal import Decimal

import pytest
import torch
from support.gaussian import SCHEDULES, best_denoise, diffusion_of

from ddpm.samplers.base import MIN_LOG_SNR, timesteps
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.samplers.dpm_solver import DPMSolver
from ddpm.samplers.heun import PURE_NOISE, Heun

ALL = [*SCHEDULES, *(f"{name} to zero" for name in SCHEDULES if name != "learned")]


def ddim(denoise, at, x_t, t, s, z, eta):
    x_0, eps, _ = denoise(x_t, t)
    if s < 0:
        return x_0
    a_t, a_s = at(t), at(s)
    # In float64 the difference below cancels: to 2e-12 on cosine.
    b_t, b_s, squared = Decimal(a_t), Decimal(a_s), Decimal(eta) ** 2
    variance = squared * (1 - b_s) / (1 - b_t) * (1 - b_t / b_s)
    kept = float((1 - b_s - variance).sqrt())
    return math.sqrt(a_s) * x_0 + kept * eps + math.sqrt(variance) * z


def ddpm(denoise, at, x_t, t, s, z, variance):
    x_0, _, fraction = denoise(x_t, t)
    if s < 0:
        return x_0
    a_t, a_s = at(t), at(s)
    beta = 1 - a_t / a_s
    mean = (
        math.sqrt(a_s) * beta / (1 - a_t) * x_0 + math.sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t) * x_t
    )
    small = beta * (1 - a_s) / (1 - a_t)
    if variance == "learned":
        return (
            mean + (fraction * math.log(beta) + (1 - fraction) * math.log(small)).mul(0.5).exp() * z
        )
    return mean + math.sqrt(beta if variance == "fixed_large" else small) * z


def heun(denoise, at, x_t, t, s, z):
    x_0, eps, _ = denoise(x_t, t)
    if s < 0:
        return x_0
    a_t, a_s = at(t), at(s)
    x_s = math.sqrt(a_s) * x_0 + math.sqrt(1 - a_s) * eps
    sigma_t = math.sqrt(1 / a_t - 1) if a_t > 0 else math.inf
    if sigma_t > PURE_NOISE:
        return x_s
    sigma_s = math.sqrt(1 / a_s - 1)
    return x_s + math.sqrt(a_s) * (sigma_s - sigma_t) * (denoise(x_s, s).eps - eps) / 2


def half_log_snr(a):
    return 0.5 * math.log(a / (1 - a)) if a > 0 else -math.inf


def dpm_solver(x_t, x_0, at, t, s, z, previous, stochastic):
    if s < 0:
        return x_0
    a_t, a_s = at(t), at(s)
    if previous is not None:
        h = half_log_snr(a_s) - half_log_snr(a_t)
        h_before = half_log_snr(a_t) - half_log_snr(at(previous[0]))
        x_0 = x_0 + h / (2 * h_before) * (x_0 - previous[1])
    decay = math.sqrt((1 - a_s) / (1 - a_t))
    exp_h = decay * math.sqrt(a_t / a_s)
    if stochastic:
        fresh = 1 - exp_h**2
        noise = math.sqrt((1 - a_s) * fresh) * z
        return decay * exp_h * x_t + math.sqrt(a_s) * fresh * x_0 + noise
    return decay * x_t + math.sqrt(a_s) * (1 - exp_h) * x_0


def coefficients(step):
    """How x_s depends on x_t and on z, and its value at 0: the map is affine."""
    points = torch.tensor([[0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    x_s = step(points[:, :1, None, None], points[:, 1:, None, None]).flatten()
    return x_s - x_s[:1] * torch.tensor([0, 1, 1])


def same(ours, frozen):
    assert (coefficients(ours) - coefficients(frozen)).abs().max() <= 1e-12


@pytest.mark.quick(11)
@pytest.mark.parametrize("steps", [None, 20, 3])
@pytest.mark.parametrize("schedule", ALL)
def test_coefficients_are_unchanged(schedule, steps):
    diffusion = diffusion_of(schedule, "v")
    at = diffusion.alphas_cumprod_at
    denoise = best_denoise(diffusion, lambda t: torch.tensor(0.3, dtype=torch.float64))
    pairs = DDIM(steps=steps, eta=0.0).timesteps(diffusion)
    for t, s in pairs[:3] + pairs[3::20] + pairs[-2:]:
        for eta in (0.0, 0.5, 1.0):
            same(
                lambda x, z: DDIM(steps=steps, eta=eta).p_sample(denoise, x, t, s, lambda _: z),
                lambda x, z: ddim(denoise, at, x, t, s, z, eta),
            )
        for kind in ("fixed_small", "fixed_large", "learned"):
            same(
                lambda x, z: DDPM(steps=steps, variance=kind).p_sample(
                    denoise, x, t, s, lambda _: z
                ),
                lambda x, z: ddpm(denoise, at, x, t, s, z, kind),
            )
        same(
            lambda x, z: Heun(steps=steps).p_sample(denoise, x, t, s, lambda _: z),
            lambda x, z: heun(denoise, at, x, t, s, z),
        )
        for stochastic in (False, True):
            for previous in (None, (t + 40, torch.tensor(0.1, dtype=torch.float64))):
                if previous is not None and t + 40 >= diffusion.T:
                    continue
                solver = DPMSolver(steps=steps, order=2, stochastic=stochastic)
                earlier = [] if previous is None else [previous]
                same(
                    lambda x, z: solver.step(
                        denoise, x, denoise(x, t).x_0, t, s, lambda _: z, earlier
                    ),
                    lambda x, z: dpm_solver(
                        x, denoise(x, t).x_0, at, t, s, z, previous, stochastic
                    ),
                )


@pytest.mark.parametrize("schedule", ALL)
def test_log_snr_spacing_is_unchanged(schedule):
    diffusion = diffusion_of(schedule, "v")
    a = torch.tensor([diffusion.alphas_cumprod_at(t) for t in range(1000)], dtype=torch.float64)
    log_snr = a.logit()
    for steps in (1, 2, 3, 7, 15, 18, 20, 50, 250, 999):
        levels = torch.linspace(log_snr[0], log_snr[-1].clamp(min=MIN_LOG_SNR), steps)
        nearest = (log_snr[None] - levels[:, None]).abs().argmin(1).tolist()
        chosen = timesteps(diffusion, steps, "log_snr")[::-1]
        nearest[-1] = 999
        for i in range(1, steps):
            nearest[i] = max(nearest[i], nearest[i - 1] + 1)
        assert chosen == [min(t, 1000 - steps + i) for i, t in enumerate(nearest)]
