"""Samplers against closed forms, on data with a known best denoiser: see support/gaussian.py.

The best prediction is affine in x_t, so every sampler is affine in x_T and in its noise. The
coefficients are computed from a few points, without randomness; Monte Carlo tests come last.

x_T is N(0, 1), x_t should be N(sqrt(a) MEAN, v). The flow that all deterministic samplers follow
keeps (x_t - sqrt(a) MEAN) / sqrt(v) constant. The last step, to E[x_0 | x_t], omits the remaining
uncertainty of x_0 and so shrinks the variance by sqrt(a / v) STD: 0.2 % with linear.
"""

import itertools
import math

import pytest
import torch
from support.gaussian import (
    MEAN,
    OBJECTIVES,
    SCHEDULES,
    STD,
    answer,
    best_denoise,
    best_model,
    best_x_0,
    diffusion_of,
    levels,
    variance,
)

from ddpm.denoising import Denoiser, predict
from ddpm.limits.parts import SPACINGS
from ddpm.samplers.base import PURE_NOISE
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.samplers.dpm_solver import DPMSolver
from ddpm.samplers.heun import Heun

ZERO = [f"{name} to zero" for name in SCHEDULES if name != "learned"]
ALL = [*SCHEDULES, *ZERO]
ASKED = [(s, o) for s in ALL for o in OBJECTIVES if o != "eps" or s not in ZERO]

FIRST_ORDER = {
    "ddim-0": lambda steps, spacing: DDIM(steps=steps, eta=0.0, spacing=spacing),
    "dpm-1": lambda steps, spacing: DPMSolver(steps=steps, order=1, spacing=spacing),
}
SECOND_ORDER = {
    "dpm-2": lambda steps, spacing: DPMSolver(steps=steps, order=2, spacing=spacing),
    "heun": lambda steps, spacing: Heun(steps=steps, spacing=spacing),
}
DETERMINISTIC = FIRST_ORDER | SECOND_ORDER
STOCHASTIC = {
    "ddpm-small": lambda steps, spacing: DDPM(steps=steps, variance="fixed_small", spacing=spacing),
    "ddpm-large": lambda steps, spacing: DDPM(steps=steps, variance="fixed_large", spacing=spacing),
    "ddpm-auto": lambda steps, spacing: DDPM(steps=steps, variance="auto", spacing=spacing),
    "ddim-half": lambda steps, spacing: DDIM(steps=steps, eta=0.5, spacing=spacing),
    "ddim-1": lambda steps, spacing: DDIM(steps=steps, eta=1.0, spacing=spacing),
}
SAMPLERS = DETERMINISTIC | STOCHASTIC


def column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype).reshape(-1, 1, 1, 1)


def forbidden(x):
    raise AssertionError("noise was drawn")


def maps(sampler, diffusion, denoise=None, dtype=torch.float64):
    """(slope, intercept) of each x_s as a function of x_T; x_0 is the last."""
    denoise = denoise or best_denoise(diffusion)
    for x in sampler(denoise, column(0.0, 1.0, dtype=dtype), forbidden):
        at_0, at_1 = x.flatten().tolist()
        yield at_1 - at_0, at_0


def flow(diffusion, t):
    """Slope of the exact flow from x_T to x_t."""
    end = diffusion.alphas_cumprod_at(diffusion.T - 1)
    return math.sqrt(variance(diffusion.alphas_cumprod_at(t)) / variance(end))


def error_of(sampler, diffusion, denoise=None):
    """Relative error of the standard deviation before the last step."""
    *_, (slope, _), _ = maps(sampler, diffusion, denoise)
    return slope / flow(diffusion, sampler.timesteps(diffusion)[-1][0]) - 1


def moments(sampler, diffusion, denoise=None, exact_start=False):
    """Mean and standard deviation of each x_s, propagated through x_s = k x_t + c + w z."""
    denoise = denoise or best_denoise(diffusion)
    end = diffusion.alphas_cumprod_at(diffusion.T - 1)
    mean, squared = (math.sqrt(end) * MEAN, variance(end)) if exact_start else (0.0, 1.0)
    for t, s in sampler.timesteps(diffusion):
        x = sampler.p_sample(denoise, column(0, 1, 0), t, s, lambda x: column(0, 0, 1))
        c, k, w = x.flatten().tolist()
        mean, squared = (k - c) * mean + c, (k - c) ** 2 * squared + (w - c) ** 2
        yield s, mean, math.sqrt(squared)


# --- from outputs to predictions


@pytest.mark.parametrize(("schedule", "objective"), ASKED)
def test_predict_recovers_the_best_x_0_at_every_step(schedule, objective):
    diffusion = diffusion_of(schedule, objective)
    t = torch.arange(1000)
    a = levels(diffusion, t)
    x_t = torch.randn(1000, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    x_t = (a.sqrt() * MEAN + variance(a).sqrt() * x_t).float()
    wanted = best_x_0(x_t, a)
    x_0, eps, fraction = predict(diffusion, answer(objective, x_t, a, wanted), x_t, t)
    assert fraction is None
    # float32 keeps 7 digits of x_t; subtracting eps and dividing by alpha amplifies the error.
    loose = 1e-6 / a.sqrt() if objective == "eps" else 1e-6
    assert ((x_0 - wanted).abs() < loose).all()
    again = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    assert (again - x_t).abs().max() < 2e-6  # Eq. 4
    loose = 1e-6 / (1 - a).sqrt()
    assert ((eps - (x_t - a.sqrt() * wanted) / (1 - a).sqrt()).abs() < loose).all()


# --- deterministic samplers


@pytest.mark.quick(17)
@pytest.mark.parametrize("kind", DETERMINISTIC)
@pytest.mark.parametrize("schedule", ALL)
def test_all_steps_follow_the_exact_flow(schedule, kind):
    diffusion = diffusion_of(schedule, "v")
    sampler = DETERMINISTIC[kind](None, "uniform")
    *_, (before, _), (slope, intercept) = maps(sampler, diffusion)
    tolerance = 0.0085 if kind in FIRST_ORDER else 0.001
    assert before == pytest.approx(flow(diffusion, 0), rel=tolerance)
    a_0, end = diffusion.alphas_cumprod_at(0), diffusion.alphas_cumprod_at(999)
    assert slope == pytest.approx(before * a_0**0.5 * STD**2 / variance(a_0), rel=1e-9)
    assert slope == pytest.approx(STD / variance(end) ** 0.5, rel=tolerance + 0.007)
    assert slope * end**0.5 * MEAN + intercept == pytest.approx(MEAN, abs=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", DETERMINISTIC)
@pytest.mark.parametrize("schedule", ALL)
def test_the_mean_is_exact_with_any_number_of_steps(schedule, kind, spacing):
    """At x_t = sqrt(a) MEAN the best eps is 0, so correct coefficients lead to MEAN."""
    diffusion = diffusion_of(schedule, "v")
    end = diffusion.alphas_cumprod_at(999)
    for steps in (1, 2, 7, 50):
        sampler = DETERMINISTIC[kind](steps, spacing)
        *_, (slope, intercept) = maps(sampler, diffusion)
        assert slope * end**0.5 * MEAN + intercept == pytest.approx(MEAN, abs=1e-9)


@pytest.mark.parametrize("schedule", ALL)
def test_second_order_samplers_are_more_accurate_than_first_order(schedule):
    diffusion = diffusion_of(schedule, "v")
    for steps in (10, 20, 50, 250):
        first = [abs(error_of(f(steps, "log_snr"), diffusion)) for f in FIRST_ORDER.values()]
        second = [abs(error_of(f(steps, "log_snr"), diffusion)) for f in SECOND_ORDER.values()]
        assert first[0] == pytest.approx(first[1], rel=1e-6)
        assert max(second) < min(first)


def test_order_of_convergence():
    """With 2.5 times the steps the error is 2.5 or 2.5^2 = 6.25 times smaller."""
    diffusion = diffusion_of("learned")
    for kind, make in DETERMINISTIC.items():
        few, many = (error_of(make(steps, "uniform"), diffusion) for steps in (20, 50))
        expected = (2.3, 2.7) if kind in FIRST_ORDER else (5.0, 8.0)
        assert expected[0] < few / many < expected[1], kind


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_error_with_few_steps_is_bounded(kind):
    """Worst error over all schedules."""
    worst = {
        steps: max(
            abs(error_of(DETERMINISTIC[kind](steps, "log_snr"), diffusion_of(name, "v")))
            for name in ALL
        )
        for steps in (20, 50, 250)
    }
    limits = (0.13, 0.055, 0.011) if kind in FIRST_ORDER else (0.045, 0.006, 0.001)
    assert [worst[steps] <= limit for steps, limit in zip(worst, limits, strict=True)] == [True] * 3


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", ["cosine", "sigmoid"])
def test_heun_is_stable_from_nearly_pure_noise(schedule, spacing):
    """The first noise level of these schedules is many times the second one."""
    sampler = Heun(steps=10, spacing=spacing)
    limit = 0.4 if spacing == "karras" else 0.25  # see the next test
    assert abs(error_of(sampler, diffusion_of(schedule))) < limit


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
def test_error_of_ten_heun_steps_with_karras_spacing_is_that_of_the_method(schedule):
    """With rho = 7, nine steps from a noise level of 200 to 0.01 divide it by up to 5 each near the
    level of the data. Heun's method written out has the same error of 0.37, without rounding to
    one of T steps; twice as many steps divide the error by more than 4."""

    def heun(levels):
        y = 1.0  # of mean 0, where eps = y level / (STD^2 + level^2)
        for a, b in itertools.pairwise(levels):
            eps = y * a / (STD**2 + a**2)
            end = y + (b - a) * eps
            if a <= PURE_NOISE:
                end = y + (b - a) * (eps + end * b / (STD**2 + b**2)) / 2
            y = end
        first, last = levels[0], levels[-1]
        return y / math.sqrt((STD**2 + last**2) / (STD**2 + first**2)) - 1

    diffusion = diffusion_of(schedule)
    errors = []
    for steps in (10, 20, 40):
        sampler = Heun(steps=steps, spacing="karras")
        scales = [diffusion.alpha_sigma(t) for t, _ in sampler.timesteps(diffusion)]
        errors.append(error_of(sampler, diffusion))
        assert errors[-1] == pytest.approx(heun([b / a for a, b in scales]), abs=1e-9)
    assert errors[0] == pytest.approx(0.37, abs=0.01)
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    even = [(157 ** (1 / 7) + i / 9 * (0.01 ** (1 / 7) - 157 ** (1 / 7))) ** 7 for i in range(10)]
    assert heun(even) == pytest.approx(0.37, abs=0.01)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", ALL)
def test_ddim_scales_by_eq_12(schedule, spacing):
    """The normalised distance to the mean is rotated by the angle between two noise levels."""
    diffusion = diffusion_of(schedule, "v")
    for steps in (5, 20, 50):
        sampler = DDIM(steps=steps, eta=0.0, spacing=spacing)
        slope = 1.0
        found = [slope for slope, _ in maps(sampler, diffusion)]
        for (t, s), other in zip(sampler.timesteps(diffusion), found, strict=True):
            a, b = diffusion.alphas_cumprod_at(t), diffusion.alphas_cumprod_at(s)
            slope *= (math.sqrt(a * b) * STD**2 + math.sqrt((1 - a) * (1 - b))) / variance(a)
            assert other == pytest.approx(slope, rel=1e-9)


# --- with noise


@pytest.mark.quick(16)
@pytest.mark.parametrize("kind", STOCHASTIC)
@pytest.mark.parametrize("schedule", ALL)
def test_stochastic_samplers_reproduce_mean_and_variance(schedule, kind):
    diffusion = diffusion_of(schedule, "v")
    *_, (s, mean, std) = moments(STOCHASTIC[kind](None, "uniform"), diffusion)
    assert s == -1
    assert mean == pytest.approx(MEAN, abs=2e-3)  # x_T is not quite N(0, 1)
    assert std == pytest.approx(STD, rel=0.03)


@pytest.mark.quick(11)
@pytest.mark.parametrize("steps", [250, 50, 20])
@pytest.mark.parametrize("schedule", ALL)
def test_error_of_stochastic_samplers_with_few_steps_is_bounded(schedule, steps):
    """The true variance lies between both fixed ones: section 3.2 of Ho et al."""
    diffusion = diffusion_of(schedule, "v")
    found = {}
    for kind, make in STOCHASTIC.items():
        *_, (_, mean, found[kind]) = moments(make(steps, "log_snr"), diffusion)
        assert mean == pytest.approx(MEAN, abs=2e-3), kind
    assert found["ddpm-small"] < STD < found["ddpm-large"]
    assert found["ddpm-auto"] == found["ddpm-small"]
    assert found["ddim-1"] == pytest.approx(found["ddpm-small"], rel=1e-6)  # section 4.1, DDIM
    assert found["ddpm-small"] < found["ddim-half"] < STD
    limit = {250: 0.04, 50: 0.17, 20: 0.4}[steps]
    assert found["ddpm-small"] == pytest.approx(STD, rel=limit)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", ALL)
def test_a_perfectly_learned_variance_makes_every_marginal_exact(schedule, spacing):
    """The covariance of x_s and x_t is sqrt(a_t / a_s) v_s, which gives the variance of x_s given
    x_t. It lies between the fixed variances, and 10 steps are as exact as 1000."""
    diffusion = diffusion_of(schedule, "v", learned_variance=True)
    sampler = DDPM(steps=10, variance="auto", spacing=spacing)
    following = dict(sampler.timesteps(diffusion))

    def fraction(t):
        s = following[t]
        if s < 0:
            return torch.zeros(())
        a, b = diffusion.alphas_cumprod_at(t), diffusion.alphas_cumprod_at(s)
        left = variance(b) - a / b * variance(b) ** 2 / variance(a)
        large = 1 - a / b
        small = large * (1 - b) / (1 - a)
        assert small < left < large
        return torch.tensor(math.log(left / small) / math.log(large / small), dtype=torch.float64)

    for s, mean, std in moments(
        sampler, diffusion, best_denoise(diffusion, fraction), exact_start=True
    ):
        b = diffusion.alphas_cumprod_at(s)
        assert mean == pytest.approx(b**0.5 * MEAN, abs=1e-9)
        left = variance(b)
        if s < 0:  # the uncertainty of x_0 is not sampled
            b = diffusion.alphas_cumprod_at(min(following))
            left = STD**4 * b / variance(b)
        assert std == pytest.approx(left**0.5, rel=1e-6)


# --- in float32


@pytest.mark.parametrize("kind", DETERMINISTIC)
@pytest.mark.parametrize(
    ("schedule", "objective"), [pair for pair in ASKED if pair[0].startswith(("linear", "cosine"))]
)
def test_float32_agrees_with_float64(schedule, kind, objective):
    diffusion = diffusion_of(schedule, objective)
    sampler = DETERMINISTIC[kind](20, "uniform")
    denoise = Denoiser(best_model(diffusion, objective), diffusion)
    found = list(maps(sampler, diffusion, denoise, torch.float32))
    # cosine keeps 5e-5 of x_0 in x_T, from which float32 recovers it to 3 digits
    tolerance = 2e-3 if objective == "eps" and schedule == "cosine" else 2e-5
    for (slope, intercept), (slope_64, intercept_64) in zip(
        found, maps(sampler, diffusion), strict=True
    ):
        assert slope == pytest.approx(slope_64, abs=tolerance)
        assert intercept == pytest.approx(intercept_64, abs=tolerance)


@pytest.mark.quick(10)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", SAMPLERS)
def test_samples_have_the_predicted_mean_and_variance(kind, objective):
    """50 steps, within 4 standard errors of 20,000 samples."""
    diffusion, n = diffusion_of("linear", objective), 20_000
    sampler = SAMPLERS[kind](50, "log_snr")
    g = torch.Generator().manual_seed(0)
    *_, x_0 = sampler(
        Denoiser(best_model(diffusion, objective), diffusion),
        torch.randn(n, 1, 1, 1, generator=g),
        lambda x: torch.randn(x.shape, generator=g),
    )
    if kind in DETERMINISTIC:
        *_, (slope, intercept) = maps(sampler, diffusion)
        mean, std = intercept, slope
    else:
        *_, (_, mean, std) = moments(sampler, diffusion)
    assert x_0.mean().item() == pytest.approx(mean, abs=4 * std / n**0.5)
    assert x_0.std().item() == pytest.approx(std, rel=4 / (2 * n) ** 0.5)
