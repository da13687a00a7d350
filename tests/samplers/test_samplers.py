"""Samplers: their steps, identities between them, and agreement with diffusers.

test_gaussian.py tests the distribution of the samples.
"""

import itertools
import math

import pytest
import torch
from support.gaussian import OBJECTIVES, Known, best_model, diffusion_of

from ddpm.denoising import Denoiser, Prediction
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.limits.parts import SPACINGS
from ddpm.samplers.base import half_log_snr, timesteps
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.samplers.dpm_solver import DPMSolver
from ddpm.samplers.heun import Heun
from ddpm.schedules.cosine import cosine
from ddpm.schedules.linear import linear


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def best(diffusion):
    return Denoiser(best_model(diffusion), diffusion)


def forbidden(x):
    raise AssertionError("noise was drawn")


# --- steps


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("T", [1, 2, 10, 1000])
def test_timesteps_decrease_strictly_from_the_last_step(T, spacing):
    for diffusion in (
        GaussianDiffusion(betas=cosine(T, 0.008, 0.999)),
        GaussianDiffusion(betas=linear(T, 1e-4, 0.02, rescale=False)),
    ):
        for steps in {1, 2, 3, 7, 10, 50, 250, 999, 1000} & set(range(T + 1)):
            chosen = timesteps(diffusion, steps, spacing)
            assert all(type(t) is int for t in chosen)
            assert len(chosen) == steps
            assert chosen[0] == T - 1
            assert chosen[-1] >= 0
            assert chosen == sorted(set(chosen), reverse=True)
            if steps > 1 and spacing != "trailing":
                assert chosen[-1] == 0
            pairs = DDIM(steps=steps, eta=0.0, spacing=spacing).timesteps(diffusion)
            assert pairs == list(zip(chosen, [*chosen[1:], -1], strict=True))
        assert timesteps(diffusion, T, spacing) == list(reversed(range(T)))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", ["linear to zero", "cosine to zero", "learned"])
def test_timesteps_decrease_strictly_on_special_schedules(schedule, spacing):
    diffusion = diffusion_of(schedule, "v")
    for steps in (1, 2, 10, 100, 1000):
        chosen = timesteps(diffusion, steps, spacing)
        assert len(chosen) == len(set(chosen)) == steps
        assert chosen[0] == 999
        assert chosen == sorted(chosen, reverse=True)


def test_timesteps_of_each_spacing():
    diffusion = diffusion_of()
    assert timesteps(diffusion, 5, "uniform") == [999, 749, 500, 250, 0]
    assert timesteps(diffusion, 5, "trailing") == [999, 799, 599, 399, 199]
    assert timesteps(diffusion, 5, "quadratic") == [999, 562, 250, 62, 0]
    log_snr = torch.tensor([diffusion.alphas_cumprod_at(t) for t in range(1000)]).logit()
    gaps = log_snr[timesteps(diffusion, 11, "log_snr")].diff()
    assert gaps.max() / gaps.min() < 1.25  # t is whole: log-SNR falls 1.1 from t = 0 to 1


@pytest.mark.parametrize("spacing", SPACINGS)
def test_sampling_from_a_start_takes_only_the_steps_below_it(spacing):
    diffusion = diffusion_of()
    sampler = DDIM(steps=20, eta=0.0, spacing=spacing)
    every = [t for t, _ in sampler.timesteps(diffusion)]
    for start in (0, 1, 333, every[3], 998, 999):
        pairs = sampler.timesteps(diffusion, start)
        chosen = [t for t, _ in pairs]
        assert chosen == [start, *(t for t in every if t < start)]
        assert [s for _, s in pairs] == [*chosen[1:], -1]
    assert sampler.timesteps(diffusion, 999) == sampler.timesteps(diffusion)


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(steps=None, variance="fixed_small"),
        DDIM(steps=7, eta=1.0),
        DPMSolver(steps=7, order=2),
        Heun(steps=7),
    ],
    ids=["ddpm", "ddim", "dpm", "heun"],
)
@pytest.mark.parametrize("start", [None, 10, 0])
def test_every_step_is_evaluated_and_yielded(sampler, start):
    diffusion = GaussianDiffusion(betas=cosine(20, 0.008, 0.999))
    seen = []

    def denoise(x_t, t):
        seen.append(t)
        return best(diffusion)(x_t, t)

    pairs = sampler.timesteps(diffusion, start)
    denoise = Known(diffusion, denoise)
    yielded = list(sampler(denoise, torch.zeros(2, 1, 1, 1), start=start))
    assert len(yielded) == len(pairs)
    assert all(x.shape == (2, 1, 1, 1) and x.dtype == torch.float32 for x in yielded)
    if isinstance(sampler, Heun):
        # Two evaluations a step, except from nearly pure noise and to x_0.
        assert seen == [i for t, s in pairs for i in ([t] if t == 19 or s < 0 else [t, s])]
    else:
        assert seen == [t for t, _ in pairs]


@pytest.mark.parametrize(
    "sampler", [DDIM(steps=7, eta=0.0), DPMSolver(steps=7, order=2), Heun(steps=7)]
)
def test_deterministic_samplers_draw_no_noise(sampler):
    diffusion = diffusion_of()
    assert len(list(sampler(best(diffusion), noise(2, 1, 1, 1), forbidden))) == 7


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(steps=None, variance="fixed_large"),
        DDIM(steps=10, eta=1.0),
        DPMSolver(steps=10, order=2),
        Heun(steps=10),
    ],
)
def test_last_step_returns_x_0_without_noise(sampler):
    diffusion = diffusion_of()
    x = noise(4, 1, 2, 2)
    for t in (0, 10):
        found = sampler.p_sample(best(diffusion), x, t, -1, forbidden)
        assert torch.equal(found, best(diffusion)(x, t).x_0)


# --- identities


def test_full_ddim_with_eta_1_is_ancestral_sampling_with_fixed_small():
    """The same images after each step from the same noise (Song et al. 2021, section 4.1)."""
    diffusion = diffusion_of()
    x_t = noise(16, 1, 2, 2)
    ancestral, implicit = DDPM(steps=None, variance="fixed_small"), DDIM(steps=1000, eta=1.0)
    for t in (999, 500, 20, 1):
        z = noise(16, 1, 2, 2, seed=t)
        a = ancestral.p_sample(best(diffusion), x_t, t, t - 1, lambda x, z=z: z)
        b = implicit.p_sample(best(diffusion), x_t, t, t - 1, lambda x, z=z: z)
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "linear to zero"])
def test_dpm_solver_of_order_1_is_ddim_with_eta_0(schedule, spacing):
    diffusion = diffusion_of(schedule, "v")
    denoise = Denoiser(best_model(diffusion, "v"), diffusion)
    x_T = noise(8, 1, 2, 2)
    ddim = DDIM(steps=12, eta=0.0, spacing=spacing)(denoise, x_T)
    dpm = DPMSolver(steps=12, order=1, spacing=spacing)(denoise, x_T)
    for a, b in zip(ddim, dpm, strict=True):
        torch.testing.assert_close(a, b, atol=3e-6, rtol=1e-5)


def test_a_single_step_of_dpm_solver_is_of_order_1():
    diffusion = diffusion_of()
    x_t = noise(4, 1, 2, 2)
    alone = DPMSolver(steps=9, order=2).p_sample(best(diffusion), x_t, 600, 400, forbidden)
    ddim = DDIM(steps=9, eta=0.0).p_sample(best(diffusion), x_t, 600, 400, forbidden)
    torch.testing.assert_close(alone, ddim, atol=2e-6, rtol=1e-5)


def test_full_length_ddpm_is_eq_7():
    """The step from t to s = t - 1 has the mean of q_posterior, and either variance."""
    diffusion = diffusion_of()
    x_t, z = noise(4, 1, 2, 2), noise(4, 1, 2, 2, seed=1)
    for t in (1, 10, 999):
        x_0 = best(diffusion)(x_t, t).x_0
        mean, small = diffusion.q_posterior(x_0, x_t, torch.full((4,), t))
        for variance, sigma2 in (("fixed_large", diffusion.betas[t]), ("fixed_small", small)):
            sampler = DDPM(steps=None, variance=variance)
            found = sampler.p_sample(best(diffusion), x_t, t, t - 1, lambda x: z)
            torch.testing.assert_close(found, mean + sigma2.sqrt() * z, atol=1e-5, rtol=1e-4)


# --- the variance of ancestral sampling


def test_auto_variance_is_learned_if_available_else_large_only_at_full_length():
    half = torch.full((1, 1, 1, 1), 0.5)
    for steps, expected in ((None, 2.0), (1000, 2.0), (50, 0.5)):
        sampler = DDPM(steps=steps, variance="auto")
        assert sampler.std(4.0, 0.25, None, 1000) == expected
        assert sampler.std(4.0, 0.25, half, 1000).item() == pytest.approx(1.0)


def test_learned_variance_interpolates_between_small_and_large():
    sampler = DDPM(steps=None, variance="learned")
    for fraction, expected in ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0)):
        found = sampler.std(4.0, 0.25, torch.tensor(fraction), 1000)
        assert found.item() == pytest.approx(expected)
    with pytest.raises(InputError, match=r"sampler\.variance=learned"):
        sampler.std(4.0, 0.25, None, 1000)


def test_fixed_variance_ignores_a_learned_one():
    half = torch.full((1, 1, 1, 1), 0.5)
    assert DDPM(steps=None, variance="fixed_small").std(4.0, 0.25, half, 1000) == 0.5
    assert DDPM(steps=None, variance="fixed_large").std(4.0, 0.25, half, 1000) == 2.0


def test_large_variance_on_few_steps_warns(caplog):
    DDPM(steps=50, variance="fixed_large")
    assert "too much noise" in caplog.text


# --- bad arguments


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: DDIM(steps=0, eta=0.0), "sampler.steps=0"),
        (lambda: DDIM(steps=10, eta=-0.1), "sampler.eta=-0.1"),
        (lambda: DDIM(steps=10, eta=1.1), "sampler.eta=1.1"),
        (lambda: DDIM(steps=10, eta=float("nan")), "sampler.eta=nan"),
        (lambda: timesteps(diffusion_of(), 1001), "sampler.steps=1001.*schedule.T=1000"),
        (lambda: Heun(steps=1001).timesteps(diffusion_of()), "sampler.steps=1001"),
        (lambda: DDPM(steps=None, variance="large"), "sampler.variance=large"),
        (lambda: DPMSolver(steps=10, order=4), "sampler.order=4"),
        (lambda: Heun(steps=10, spacing="linear"), "sampler.spacing=linear"),
    ],
)
def test_bad_arguments_are_named(make, key):
    with pytest.raises(InputError, match=key):
        make()


# --- diffusers' schedulers, with the same outputs and the same noise

NAMES = {"eps": "epsilon", "v": "v_prediction", "x_0": "sample"}
LINEAR = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}


def scheduler(name, objective, *, zero=False, **options):
    """A scheduler of diffusers with noise levels in float64: in its own float32, 1 - a_t / a_s has
    3 digits."""
    diffusers = pytest.importorskip("diffusers")
    if zero:
        options["rescale_betas_zero_snr"] = True
    oracle = getattr(diffusers, name)(**LINEAR, prediction_type=NAMES[objective], **options)
    if name != "DPMSolverMultistepScheduler":
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        if zero:
            from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

            betas = rescale_zero_terminal_snr(betas)
        assert (betas - oracle.betas).abs().max() < 1e-4
        oracle.alphas_cumprod = (1 - betas).cumprod(0)
    return oracle


def processes():
    return [("linear", name) for name in OBJECTIVES] + [
        ("linear to zero", name) for name in OBJECTIVES if name != "eps"
    ]


def network_returning(output):
    """A network with this output."""
    return lambda x_t, t: output


@pytest.mark.parametrize("kind", ["fixed_large", "fixed_small", "learned"])
@pytest.mark.parametrize(("schedule", "objective"), processes())
def test_diffusers_agrees_on_ddpm(schedule, objective, kind):
    learned = kind == "learned"
    diffusion = diffusion_of(schedule, objective, learned_variance=learned)
    oracle = scheduler(
        "DDPMScheduler",
        objective,
        zero=schedule != "linear",
        variance_type="learned_range" if learned else kind,
        clip_sample=True,
    )
    x_t = noise(4, 1, 4, 4)
    for steps in (None, 50):
        ours = DDPM(steps=steps, variance=kind)
        pairs = ours.timesteps(diffusion)
        oracle.set_timesteps(timesteps=[t for t, _ in pairs])
        for t, s in [*pairs[:3], *pairs[20:23], pairs[-2], pairs[-1]]:
            output = noise(4, 2 if learned else 1, 4, 4, seed=t)
            g = torch.Generator().manual_seed(7)
            expected = oracle.step(output, t, x_t, generator=g).prev_sample
            z = noise(4, 1, 4, 4, seed=7)
            denoise = Denoiser(network_returning(output), diffusion)
            found = ours.p_sample(denoise, x_t, t, s, lambda x, z=z: z)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("schedule", "objective"), processes())
def test_diffusers_agrees_on_ddim(schedule, objective, eta):
    diffusion = diffusion_of(schedule, objective)
    oracle = scheduler("DDIMScheduler", objective, zero=schedule != "linear", clip_sample=True)
    x_t = noise(4, 1, 4, 4)
    for steps in (1000, 20):
        oracle.set_timesteps(steps)
        ours = DDIM(steps=steps, eta=eta)
        for t in (999, 700, 300, 51, 1000 // steps - 1):
            s = max(t - 1000 // steps, -1)
            output, z = noise(4, 1, 4, 4, seed=t), noise(4, 1, 4, 4, seed=7)
            g = torch.Generator().manual_seed(7)
            expected = oracle.step(
                output, t, x_t, eta=eta, use_clipped_model_output=True, generator=g
            ).prev_sample
            if s < 0:  # diffusers adds noise of variance 0
                z = torch.zeros_like(z)
            denoise = Denoiser(network_returning(output), diffusion)
            found = ours.p_sample(denoise, x_t, t, s, lambda x, z=z: z)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_diffusers_agrees_on_dpm_solver(objective, spacing, order):
    """From x_T to x_0, each with the outputs for its own images."""
    diffusion = diffusion_of("linear", objective)
    oracle = scheduler(
        "DPMSolverMultistepScheduler",
        objective,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        solver_order=order,
        final_sigmas_type="zero",
    )
    ours = DPMSolver(steps=20, order=order, spacing=spacing)
    model = best_model(diffusion, objective)
    x = noise(4, 1, 4, 4)
    oracle.set_timesteps(timesteps=[t for t, _ in ours.timesteps(diffusion)])
    for t, found in zip(oracle.timesteps, ours(Denoiser(model, diffusion), x), strict=True):
        x = oracle.step(model(x, t.repeat(4)), t, x).prev_sample
        torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize("order", [1, 2])
def test_diffusers_agrees_on_dpm_solver_from_pure_noise(order):
    """diffusers keeps 6e-8 of the signal's power in x_T, to have a finite log-SNR."""
    diffusion = diffusion_of("linear to zero", "v")
    oracle = scheduler(
        "DPMSolverMultistepScheduler",
        "v",
        zero=True,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        solver_order=order,
        final_sigmas_type="zero",
    )
    ours = DPMSolver(steps=20, order=order, spacing="log_snr")
    model = best_model(diffusion, "v")
    x = noise(4, 1, 4, 4)
    oracle.set_timesteps(timesteps=[t for t, _ in ours.timesteps(diffusion)])
    for t, found in zip(oracle.timesteps, ours(Denoiser(model, diffusion), x), strict=True):
        x = oracle.step(model(x, t.repeat(4)), t, x).prev_sample
        torch.testing.assert_close(found, x, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
def test_diffusers_gives_the_last_term_of_order_3_half_of_its_weight(spacing):
    """Its code is the authors'. From the same values ours goes further by that half, and without it
    by nothing."""
    diffusion = diffusion_of("linear", "x_0")
    oracle = scheduler(
        "DPMSolverMultistepScheduler",
        "x_0",
        algorithm_type="dpmsolver++",
        solver_order=3,
        final_sigmas_type="zero",
    )
    ours, model = DPMSolver(steps=20, order=3, spacing=spacing), best_model(diffusion, "x_0")
    denoiser = Denoiser(model, diffusion)
    oracle.set_timesteps(timesteps=[t for t, _ in ours.timesteps(diffusion)])
    x, previous, differ = noise(4, 1, 4, 4), [], 0
    for t, s in ours.timesteps(diffusion):
        x_0 = model(x, torch.tensor([t] * 4))
        found = ours.step(denoiser, x, x_0, t, s, forbidden, previous)
        x = oracle.step(x_0, torch.tensor(t), x).prev_sample
        half = torch.zeros(())
        if len(previous) == 2 and s >= 0:
            places = [half_log_snr(*diffusion.alpha_sigma(i)) for i in (s, t, *dict(previous))]
            h, h_0, h_1 = (a - b for a, b in itertools.pairwise(places))
            (_, x_1), (_, x_2) = previous
            second = ((x_0 - x_1) / h_0 - (x_1 - x_2) / h_1) / (h_0 + h_1)  # half the derivative
            half = diffusion.alpha_sigma(s)[0] * (h**2 / 2 - h - math.expm1(-h)) * second
            differ = max(differ, half.abs().max().item())
        torch.testing.assert_close(found - half, x, atol=5e-5, rtol=1e-5)
        previous = [(t, x_0), *previous][:2]
    assert differ > 1.5e-3


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_third_order_step_is_exact_for_a_parabola(stochastic):
    """If x_0_hat is a parabola in lambda: by the integral of the flow, or of the reverse SDE, done
    numerically (Lu et al. 2022, section 4)."""
    diffusion = diffusion_of()
    denoiser = Denoiser(best_model(diffusion), diffusion)
    steps = [900, 700, 450, 200]
    place = {t: half_log_snr(*diffusion.alpha_sigma(t)) for t in steps}

    def x_0_at(place):
        return 0.3 - 0.2 * place + 0.07 * place**2

    x_0 = {t: torch.full((1, 1, 1, 1), x_0_at(place[t]), dtype=torch.float64) for t in steps}
    x, t, s = torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64), 450, 200
    previous = [(n, x_0[n]) for n in (700, 900)]
    solver = DPMSolver(steps=4, order=3, stochastic=stochastic)
    found = solver.step(denoiser, x, x_0[t], t, s, torch.zeros_like, previous)
    k, h = 1 + stochastic, place[s] - place[t]
    r = torch.linspace(0, h, 100_001, dtype=torch.float64)
    (_, sigma_t), (alpha_s, sigma_s) = diffusion.alpha_sigma(t), diffusion.alpha_sigma(s)
    integral = torch.trapezoid(k * (k * (r - h)).exp() * x_0_at(place[t] + r), r)
    kept = sigma_s / sigma_t * math.exp(-(k - 1) * h)
    assert found.item() == pytest.approx(kept * 0.8 + alpha_s * integral.item(), rel=1e-8)


def test_a_second_order_step_is_algorithm_2():
    """x_s by hand, with D = (1 + 1 / 2r) x_0 - 1 / 2r x_0_before and r = h_before / h."""
    diffusion = diffusion_of()
    answers = {999: 0.3, 600: -0.2, 300: 0.5}
    solver = DPMSolver(steps=3, order=2)
    solver.timesteps = lambda diffusion, start=None: [(999, 600), (600, 300), (300, -1)]

    def denoise(x_t, t):
        return Prediction(torch.full_like(x_t, answers[t]), x_t)

    x, y, z = (i.item() for i in solver(Known(diffusion, denoise), torch.ones(1, 1, 1, 1)))
    a = {t: diffusion.alphas_cumprod_at(t) for t in answers}
    alpha = {t: a[t] ** 0.5 for t in a}
    sigma = {t: (1 - a[t]) ** 0.5 for t in a}
    lam = {t: torch.tensor(alpha[t] / sigma[t], dtype=torch.float64).log() for t in a}
    h = lam[600] - lam[999]
    expected = sigma[600] / sigma[999] - alpha[600] * (-h).expm1() * 0.3
    assert x == pytest.approx(expected.item(), rel=1e-5)
    h_next = lam[300] - lam[600]
    r = h / h_next
    d = (1 + 1 / (2 * r)) * -0.2 - 1 / (2 * r) * 0.3
    expected = sigma[300] / sigma[600] * x - alpha[300] * (-h_next).expm1() * d
    assert y == pytest.approx(expected.item(), rel=1e-5)
    assert z == pytest.approx(0.5)
