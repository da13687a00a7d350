"""The samplers of flow matching, EDM and UniPC, on every parametrisation, against closed forms.

The data and the best denoiser are those of support/gaussian.py; the flow that deterministic
samplers follow keeps (x_t - alpha MEAN) / std(x_t) constant.
"""

import math

import pytest
import torch
from support.gaussian import (
    ALL_OBJECTIVES,
    MEAN,
    STD,
    best_denoise,
    best_network,
    best_x_0,
    levels,
    variance,
)

from ddpm.denoising import Denoiser
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.limits.parts import SPACINGS
from ddpm.objectives.v import V
from ddpm.objectives.velocity import Velocity
from ddpm.samplers.base import PURE_NOISE, timesteps
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.samplers.dpm_solver import DPMSolver
from ddpm.samplers.euler import Euler
from ddpm.samplers.euler_ancestral import EulerAncestral
from ddpm.samplers.heun import Heun, nearest_step
from ddpm.samplers.unipc import UniPC
from ddpm.schedules.cosine import cosine
from ddpm.schedules.linear import linear
from ddpm.schedules.rectified import rectified

SCHEDULES = {
    "linear": lambda: linear(1000, 1e-4, 0.02),
    "cosine": lambda: cosine(1000, 0.008, 0.999),
    "rectified": lambda: rectified(1000, 1.0),
    "rectified to 0.999": lambda: rectified(1000, 0.999),
}
PAIRS = [(s, o) for s in SCHEDULES for o in ALL_OBJECTIVES if (s, o) != ("rectified", "eps")]
DETERMINISTIC = {
    "euler": lambda n, spacing="log_snr": Euler(steps=n, spacing=spacing),
    "heun": lambda n, **o: Heun(steps=n, **o),
    "dpm-3": lambda n, **o: DPMSolver(steps=n, order=3, **o),
    "unipc-2": lambda n, **o: UniPC(steps=n, order=2, **o),
    "unipc-3": lambda n, **o: UniPC(steps=n, order=3, **o),
}
STOCHASTIC = {
    "euler-ancestral": lambda n: EulerAncestral(steps=n, eta=1.0, spacing="log_snr"),
    "heun-churn": lambda n: Heun(steps=n, churn=40.0),
    "dpm-3-sde": lambda n: DPMSolver(steps=n, order=3, stochastic=True),
}


def process(schedule="linear", objective="v"):
    return GaussianDiffusion(betas=SCHEDULES[schedule](), objective=ALL_OBJECTIVES[objective]())


def column(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


def forbidden(x):
    raise AssertionError("noise was drawn")


def error_of(sampler, diffusion):
    """Relative error of the standard deviation before the last step, to x_0."""
    *_, x, _ = sampler(best_denoise(diffusion), column(0.0, 1.0), forbidden)
    first, last = diffusion.T - 1, sampler.timesteps(diffusion)[-1][0]
    v = [variance(diffusion.alphas_cumprod_at(t)) for t in (last, first)]
    return (x[1] - x[0]).item() / math.sqrt(v[0] / v[1]) - 1


@pytest.mark.parametrize(("schedule", "objective"), PAIRS)
def test_the_best_network_of_every_objective_predicts_the_best_x_0(schedule, objective):
    diffusion = process(schedule, objective)
    t = torch.arange(0, 1000, 37)
    a = levels(diffusion, t)
    z = torch.randn(len(t), 1, 1, 4, generator=torch.Generator().manual_seed(0))
    x_t = (a.sqrt() * MEAN + variance(a).sqrt() * z).float()
    denoiser = Denoiser(best_network(diffusion), diffusion)
    found = denoiser.predict(x_t, t, None).x_0
    loose = 2e-6 / a.sqrt() if objective == "eps" else torch.full_like(a, 5e-6)
    if objective.startswith("edm"):  # c_noise ends at a noise level of 10,000
        loose[a < 1e-8] = 1e-4
    assert ((found - best_x_0(x_t, a)).abs() < loose).all()


KINDS = [*DETERMINISTIC, *STOCHASTIC]
# Each sampler and each pair occurs among the quick ones.
EVERY = [
    pytest.param(*pair, kind, marks=[] if (i - k) % len(KINDS) == 0 else pytest.mark.slow)
    for i, pair in enumerate(PAIRS)
    for k, kind in enumerate(KINDS)
]


@pytest.mark.parametrize(("schedule", "objective", "kind"), EVERY)
def test_samples_have_the_mean_and_variance_of_the_data(schedule, objective, kind):
    """In float32, through the network, up to the errors of 2,000 samples and of 40 steps."""
    diffusion, n = process(schedule, objective), 2000
    g = torch.Generator().manual_seed(0)
    make = (DETERMINISTIC | STOCHASTIC)[kind]
    *_, x_0 = make(40)(
        Denoiser(best_network(diffusion), diffusion),
        torch.randn(n, 1, 1, 1, generator=g),
        lambda x: torch.randn(x.shape, generator=g),
    )
    assert x_0.mean().item() == pytest.approx(MEAN, abs=5 * STD / n**0.5)
    loose = 0.13 if kind in ("euler", "euler-ancestral") else 0.04  # first order
    assert x_0.std().item() == pytest.approx(STD, rel=loose + 4 / (2 * n) ** 0.5)


@pytest.mark.parametrize("spacing", ["uniform", "trailing", "karras"])
@pytest.mark.parametrize("kind", DETERMINISTIC)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_mean_is_exact_with_any_number_of_steps(schedule, kind, spacing):
    diffusion = process(schedule)
    end = math.sqrt(diffusion.alphas_cumprod_at(999))
    for steps in (1, 2, 3, 8, 30):
        *_, x = DETERMINISTIC[kind](steps, spacing=spacing)(
            best_denoise(diffusion), column(end * MEAN), forbidden
        )
        assert x.item() == pytest.approx(MEAN, abs=1e-9)


EDGES = {
    **DETERMINISTIC,
    **{f"dpm-{n}": lambda s, n=n, **o: DPMSolver(steps=s, order=n, **o) for n in (1, 2, 3)},
    **{
        f"dpm-{n}-sde": lambda s, n=n, **o: DPMSolver(steps=s, order=n, stochastic=True, **o)
        for n in (1, 2, 3)
    },
    "unipc-1": lambda s, **o: UniPC(steps=s, order=1, **o),
    **{f"ddim-{e}": lambda s, e=e, **o: DDIM(steps=s, eta=e, **o) for e in (0.0, 1.0)},
    **{
        f"ddpm-{v}": lambda s, v=v, **o: DDPM(steps=s, variance=v, **o)
        for v in ("fixed_small", "fixed_large")
    },
    "euler-ancestral": lambda s, **o: EulerAncestral(steps=s, **o),
    "heun-churn": lambda s, **o: Heun(steps=s, churn=40.0, **o),
}


@pytest.mark.quick(32)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", EDGES)
def test_sampling_from_pure_noise_is_exact_in_one_two_or_all_steps(kind, spacing):
    """At u = 1 the log-SNR is -inf. In float64 the mean is exact, and in float32, through the
    network and with the same noise, every image is the same to 5 digits."""
    diffusion = GaussianDiffusion(betas=rectified(24, 1.0), objective=Velocity())
    assert diffusion.alpha_sigma(23) == (0, 1)
    in_float32 = Denoiser(best_network(diffusion), diffusion)
    for steps in (1, 2, 24):
        sampler = EDGES[kind](steps, spacing=spacing)
        assert len(sampler.timesteps(diffusion)) == steps
        *_, x = sampler(best_denoise(diffusion), column(0.0), torch.zeros_like)
        assert x.item() == pytest.approx(MEAN, abs=1e-9)
        x_T = column(-1.5, 0.0, 1.0)
        pairs = zip(
            sampler(best_denoise(diffusion), x_T, lambda x: 0.5 * torch.ones_like(x)),
            sampler(in_float32, x_T.float(), lambda x: 0.5 * torch.ones_like(x)),
            strict=True,
        )
        for exact, found in pairs:
            torch.testing.assert_close(found.double(), exact, atol=2e-5, rtol=1e-5)


def even_in_log_snr(T):
    """A process whose every `uniform` spacing is even in log-SNR."""
    a = torch.linspace(10, -10, T, dtype=torch.float64).sigmoid()
    a = torch.cat([a.new_ones(1), a])
    return GaussianDiffusion(betas=1 - a[1:] / a[:-1], objective=V())


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        *[("euler", 0.9, 1.1), ("heun", 1.9, 2.2)],
        *[("dpm-3", 2.5, 4.5), ("unipc-2", 2.5, 3.5), ("unipc-3", 2.5, 6)],
    ],
)
def test_order_of_convergence(kind, least, most):
    """By how many powers of two the error falls with twice the steps."""
    diffusion = even_in_log_snr(601)
    few, many = (
        abs(error_of(DETERMINISTIC[kind](n + 1, spacing="uniform"), diffusion)) for n in (50, 100)
    )
    assert least < math.log2(few / many) < most


class AuthorsThird(DPMSolver):
    """Order 3 with half of the weight of its last term, as in the code of the authors."""

    def parabola(self, h, back, x_0, x_1, x_2):
        square = super().parabola(h, back, *column(0.0, back[0] ** 2, back[1] ** 2))
        curvature = ((x_0 - x_1) / back[0] - (x_1 - x_2) / (back[1] - back[0])) / back[1]
        return super().parabola(h, back, x_0, x_1, x_2) - square / 2 * curvature


def test_half_of_the_last_term_of_order_3_converges_with_order_2():
    diffusion = even_in_log_snr(601)
    few, many = (
        abs(error_of(AuthorsThird(steps=n + 1, order=3, spacing="uniform"), diffusion))
        for n in (50, 100)
    )
    assert 1.9 < math.log2(few / many) < 2.3


def test_error_falls_with_the_order_of_the_sampler():
    diffusion = even_in_log_snr(601)
    errors = {
        k: abs(error_of(f(26, spacing="uniform"), diffusion)) for k, f in DETERMINISTIC.items()
    }
    assert (
        errors["unipc-3"] < errors["dpm-3"] < errors["unipc-2"] < errors["heun"] < errors["euler"]
    )


# --- identities


@pytest.mark.parametrize("spacing", ["trailing", "uniform"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_with_eta_0_is_eulers_method_on_the_flow(schedule, spacing):
    """z <- z + (u_s - u_t) (eps - x_0) in z = x / (alpha + sigma), written out."""
    diffusion = process(schedule)
    denoise = best_denoise(diffusion)
    x = torch.randn(16, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    for steps in (1, 7, 50):
        ddim = DDIM(steps=steps, eta=0.0, spacing=spacing)
        ours = Euler(steps=steps, spacing=spacing)(denoise, x)
        z, u = None, None
        for (t, s), found, again in zip(
            ddim.timesteps(diffusion), ddim(denoise, x), ours, strict=True
        ):
            (a_t, b_t), (a_s, b_s) = diffusion.alpha_sigma(t), diffusion.alpha_sigma(s)
            if z is None:
                z, u = x / (a_t + b_t), b_t / (a_t + b_t)
            x_0, eps, _ = denoise((a_t + b_t) * z, t)
            z, u = z + (b_s / (a_s + b_s) - u) * (eps - x_0), b_s / (a_s + b_s)
            assert (found - (a_s + b_s) * z).abs().max() < 1e-10
            assert (again - found).abs().max() < 1e-10


def test_trailing_steps_of_the_rectified_schedule_are_evenly_spaced():
    diffusion = process("rectified")
    for n in (4, 10, 20):
        levels_of = [diffusion.alpha_sigma(t) for t, _ in Euler(steps=n).timesteps(diffusion)]
        u = [b / (a + b) for a, b in levels_of]
        assert u == pytest.approx([1 - i / n for i in range(n)])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_euler_ancestral_is_ddim(schedule, eta):
    diffusion = process(schedule)
    denoise = best_denoise(diffusion)
    x, z = torch.randn(2, 16, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    for t, s in ((999, 800), (800, 333), (333, 2), (2, 0), (0, -1)):
        found = EulerAncestral(steps=9, eta=eta).p_sample(denoise, x, t, s, lambda _: z)
        ddim = DDIM(steps=9, eta=eta).p_sample(denoise, x, t, s, lambda _: z)
        assert (found - ddim).abs().max() < 1e-10


def test_ddpm_with_fixed_small_equals_euler_ancestral():
    diffusion = process("rectified")
    denoise = best_denoise(diffusion)
    x, z = torch.randn(2, 16, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    for t, s in ((999, 800), (800, 333), (333, 2)):
        one = DDPM(steps=9, variance="fixed_small").p_sample(denoise, x, t, s, lambda _: z)
        other = EulerAncestral(steps=9, eta=1.0).p_sample(denoise, x, t, s, lambda _: z)
        assert (one - other).abs().max() < 1e-10


def test_edm_with_sigma_data_1_gives_the_samples_of_v():
    """The EDM network is that of v with a negated output, called with c_noise instead of t."""
    v, edm = process("rectified", "v"), process("rectified", "edm 1.0")
    at = {}

    def as_v(x, t):
        return torch.tanh(x + 0.1)

    def as_edm(x, c_noise):
        at.update(dict.fromkeys(c_noise.tolist()))
        return -torch.tanh(x + 0.1)

    x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for make in DETERMINISTIC.values():
        pairs = (make(12)(Denoiser(m, d), x) for m, d in ((as_v, v), (as_edm, edm)))
        for one, other in zip(*pairs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert len(at) > 10


def test_all_samplers_equal_ddim_for_a_constant_prediction():
    """Then the flow is linear, and every order takes the same steps as DDIM."""
    from ddpm.denoising import Prediction

    diffusion = process("linear")

    class Constant(Denoiser):
        def __call__(self, x_t, t):
            alpha, sigma = self.alpha_sigma(t)
            x_0 = torch.full_like(x_t, 0.3)
            return Prediction(x_0, (x_t - alpha * x_0) / sigma)

    denoise, x = Constant(None, diffusion), column(0.0, 1.0)
    for make in DETERMINISTIC.values():
        for a, b in zip(
            make(9, spacing="log_snr")(denoise, x),
            DDIM(steps=9, eta=0.0, spacing="log_snr")(denoise, x),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


# --- churn and the spacing of Karras


def test_churn_adds_noise_up_to_its_target_level():
    """x_t has the variance of the step it goes to, if churn_noise is 1."""
    diffusion = process("linear")
    heun, denoise = Heun(steps=20, churn=4.0), best_denoise(diffusion)
    for t in (5, 300, 900):
        x = column(0.0, 1.0, 0.0)
        found, to = heun.churned(denoise, x, t, lambda x: column(0.0, 0.0, 1.0))
        (a, b), (a_to, b_to) = diffusion.alpha_sigma(t), diffusion.alpha_sigma(to)
        assert to > t
        assert math.log((b_to / a_to) / (b / a)) == pytest.approx(math.log(1.2), abs=0.06)
        _, k, w = found.flatten().tolist()
        assert k == pytest.approx(a_to / a)
        assert k**2 * b**2 + w**2 == pytest.approx(b_to**2)
    assert heun.churned(denoise, x, 999, forbidden) == (x, 999)


def test_an_empty_range_of_churn_is_refused():
    with pytest.raises(InputError, match=r"sampler.churn_max=1.*above sampler.churn_min=5"):
        Heun(churn=1.0, churn_min=5.0, churn_max=1.0)


def test_churn_is_limited_in_strength_and_range():
    diffusion = process("linear")
    denoise, x = best_denoise(diffusion), column(1.0)
    strong = Heun(steps=10, churn=1e6)
    _, to = strong.churned(denoise, x, 500, torch.zeros_like)
    (a, b), (a_to, b_to) = diffusion.alpha_sigma(500), diffusion.alpha_sigma(to)
    assert b_to / a_to == pytest.approx(math.sqrt(2) * b / a, rel=0.01)
    limited = Heun(steps=10, churn=40.0, churn_min=0.05, churn_max=50.0)
    for t in (0, 990):
        assert limited.churned(denoise, x, t, forbidden)[1] == t
    assert limited.churned(denoise, x, 500, torch.zeros_like)[1] > 500
    pure = process("rectified")
    assert nearest_step(best_denoise(pure), 990, 1e9) == 998  # never to pure noise


def test_heun_without_churn_draws_no_noise():
    diffusion = process("rectified")
    assert len(list(Heun(steps=5)(best_denoise(diffusion), column(1.0), forbidden))) == 5


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_spacing_is_even_in_sigma_to_the_1_over_rho(rho):
    """sigma^(1 / rho) is even, up to the rounding to one of T = 100,000 steps."""
    diffusion = GaussianDiffusion(betas=linear(100_000, 1e-4, 0.02), objective=V())
    ts = timesteps(diffusion, 12, "karras", rho)
    level = [b / a for a, b in (diffusion.alpha_sigma(t) for t in ts)]
    gaps = -torch.tensor([x ** (1 / rho) for x in level]).diff()
    assert gaps.max() / gaps.min() < 1.05
    assert (ts[0], ts[-1]) == (99_999, 0)


def test_karras_spacing_begins_at_pure_noise():
    ts = timesteps(process("rectified"), 10, "karras")
    assert ts[0] == 999
    a, b = process("rectified").alpha_sigma(ts[1])
    assert b / a < PURE_NOISE


# --- diffusers' schedulers, step by step


def oracle_of(name, **options):
    return getattr(pytest.importorskip("diffusers"), name)(**options)


def start(n=4):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("steps", [5, 20])
def test_diffusers_agrees_on_the_flow(steps):
    oracle = oracle_of("FlowMatchEulerDiscreteScheduler")
    diffusion = process("rectified", "velocity")
    ours, model = Euler(steps=steps), best_network(diffusion)
    pairs = ours.timesteps(diffusion)
    scale = {t: sum(diffusion.alpha_sigma(t)) for pair in pairs for t in pair}
    u = [diffusion.alpha_sigma(t)[1] / scale[t] for t, _ in pairs]
    oracle.set_timesteps(sigmas=u)
    z = start()
    for (t, s), number, found in zip(
        pairs, oracle.timesteps, ours(Denoiser(model, diffusion), z), strict=True
    ):
        output = model((scale[t] * z).float(), torch.full((4,), t))
        z = oracle.step(output, number, z).prev_sample
        torch.testing.assert_close(found, scale[s] * z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_diffusers_agrees_on_edm(name):
    """With the preconditioning of diffusers: the same output of the network at each step."""
    options = {} if name == "EDMEulerScheduler" else {"solver_order": 2}
    oracle = oracle_of(name, sigma_data=0.5, **options)
    diffusion = process("linear", "edm 0.5")
    diffusion.clip = None
    steps = 18
    ours = (
        Euler(steps=steps, spacing="karras")
        if name == "EDMEulerScheduler"
        else DPMSolver(steps=steps, order=2, spacing="karras")
    )
    pairs = ours.timesteps(diffusion)
    alpha = {t: diffusion.alpha_sigma(t)[0] for pair in pairs for t in pair}
    level = [diffusion.alpha_sigma(t)[1] / alpha[t] for t, _ in pairs]
    oracle.set_timesteps(steps)
    oracle.sigmas = torch.tensor([*level, 0.0], dtype=torch.float64)
    outputs = []

    def network(x, c_noise):
        outputs.append(0.3 * torch.tanh(x))
        return outputs[-1]

    x, y = start(), None
    for i, (number, found) in enumerate(
        zip(oracle.timesteps, ours(Denoiser(network, diffusion), x), strict=True)
    ):
        t, s = pairs[i]
        y = x.double() / alpha[t] if y is None else y
        given = oracle.precondition_inputs(y, oracle.sigmas[i])
        y = oracle.step(0.3 * torch.tanh(given), number, y).prev_sample
        torch.testing.assert_close(found.double(), alpha[s] * y, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("objective", ["eps", "v", "x_0"])
def test_diffusers_agrees_on_unipc(objective, order):
    names = {"eps": "epsilon", "v": "v_prediction", "x_0": "sample"}
    oracle = oracle_of(
        "UniPCMultistepScheduler",
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        solver_order=order,
        solver_type="bh2",
        prediction_type=names[objective],
        final_sigmas_type="zero",
    )
    diffusion = process("linear", objective)
    ours, model = UniPC(steps=20, order=order, spacing="log_snr"), best_network(diffusion)
    ts = [t for t, _ in ours.timesteps(diffusion)]
    oracle.set_timesteps(20)
    oracle.timesteps = torch.tensor(ts)
    level = [diffusion.alpha_sigma(t)[1] / diffusion.alpha_sigma(t)[0] for t in ts]
    oracle.sigmas = torch.tensor([*level, 0.0], dtype=torch.float64)
    x = start()
    for t, found in zip(ts, ours(Denoiser(model, diffusion), x), strict=True):
        # diffusers corrects x after the network has seen it
        output = model(x.float(), torch.full((4,), t)).double()
        x = oracle.step(output, t, x.double()).prev_sample
        torch.testing.assert_close(found.double(), x, atol=1e-5, rtol=1e-5)


def test_diffusers_agrees_on_euler_ancestral():
    oracle = oracle_of(
        "EulerAncestralDiscreteScheduler",
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        timestep_spacing="trailing",
    )
    diffusion = process("linear", "eps")
    ours, model = EulerAncestral(steps=20, eta=1.0, spacing="trailing"), best_network(diffusion)
    pairs = ours.timesteps(diffusion)
    alpha = {t: diffusion.alpha_sigma(t)[0] for pair in pairs for t in pair}
    level = [diffusion.alpha_sigma(t)[1] / alpha[t] for t, _ in pairs]
    oracle.set_timesteps(20)
    oracle.sigmas = torch.tensor([*level, 0.0], dtype=torch.float64)
    oracle.timesteps = torch.tensor([float(t) for t, _ in pairs])
    noises = [
        torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(20)
    ]
    drawn = iter(noises)
    x, y = start(), None
    steps = ours(Denoiser(model, diffusion), x, lambda x: next(drawn))
    for i, ((t, s), found) in enumerate(zip(pairs, steps, strict=True)):
        y = x.double() / alpha[t] if y is None else y
        output = model((alpha[t] * y).float(), torch.full((4,), t))
        g = torch.Generator().manual_seed(i)
        y = oracle.step(output, oracle.timesteps[i], y, generator=g).prev_sample
        torch.testing.assert_close(found.double(), alpha[s] * y.double(), atol=1e-5, rtol=1e-5)
