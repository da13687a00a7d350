"""Samplers against closed forms: for Gaussian data the best eps is known, so no network is needed.

If every pixel of x_0 is N(mean, std^2), then E[eps | x_t] = sqrt(1 - a) (x_t - sqrt(a) mean) / v
with a = alphas_cumprod and v = a std^2 + 1 - a, and a right sampler returns that mean and std.
"""

import pytest
import torch

from ddpm.diffusion import GaussianDiffusion, extract
from ddpm.errors import InputError
from ddpm.samplers.base import timesteps
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.schedules.cosine import cosine
from ddpm.schedules.linear import linear

MEAN, STD, N = 0.2, 0.15, 20_000  # far enough inside [-1, 1] for clipping not to matter


def best_eps(diffusion):
    def model(x_t, t):
        a = extract(diffusion.alphas_cumprod, t, x_t)
        variance = a * STD**2 + 1 - a
        return (1 - a).sqrt() * (x_t - a.sqrt() * MEAN) / variance

    return model


def diffusion_of(name):
    return GaussianDiffusion(
        betas=linear(1000, 1e-4, 0.02) if name == "linear" else cosine(1000, 0.008, 0.999)
    )


def run(sampler, diffusion, seed=0):
    g = torch.Generator().manual_seed(seed)
    x_T = torch.randn(N, 1, 1, 1, generator=g)
    *_, x_0 = sampler(
        best_eps(diffusion), diffusion, x_T, lambda x: torch.randn(x.shape, generator=g)
    )
    return x_0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(steps=None, variance="fixed_small"),
        DDPM(steps=None, variance="fixed_large"),
        DDIM(steps=1000, eta=0.0),
        DDIM(steps=1000, eta=0.5),
        DDIM(steps=1000, eta=1.0),
        DDPM(steps=250, variance="auto"),
    ],
    ids=["ddpm-small", "ddpm-large", "ddim-0", "ddim-half", "ddim-1", "ddpm-respaced"],
)
def test_gaussian_data_comes_back(sampler, schedule):
    x_0 = run(sampler, diffusion_of(schedule))
    assert x_0.mean().item() == pytest.approx(MEAN, abs=4 * STD / N**0.5 + 0.002)
    assert x_0.std().item() == pytest.approx(
        STD, rel=0.03 if getattr(sampler, "steps", None) != 250 else 0.09
    )


def test_more_steps_come_closer():
    diffusion = diffusion_of("linear")
    stds = [run(DDIM(steps=steps, eta=0.0), diffusion).std().item() for steps in (10, 50, 250)]
    errors = [abs(std / STD - 1) for std in stds]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.06


def test_full_ddim_with_eta_1_is_ancestral_sampling_with_fixed_small():
    """Step for step the same images from the same noise (Song et al. 2021, section 4.1)."""
    diffusion = diffusion_of("linear")
    eps_of = best_eps(diffusion)
    g = torch.Generator().manual_seed(0)
    x_t = torch.randn(16, 1, 2, 2, generator=g)
    ancestral, implicit = DDPM(steps=None, variance="fixed_small"), DDIM(steps=1000, eta=1.0)
    for t in (999, 500, 20, 1):
        z = torch.randn(x_t.shape, generator=g)
        a = ancestral.p_sample(eps_of, diffusion, x_t, t, t - 1, lambda x, z=z: z)
        b = implicit.p_sample(eps_of, diffusion, x_t, t, t - 1, lambda x, z=z: z)
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_last_step_adds_no_noise():
    diffusion = diffusion_of("linear")
    x = torch.randn(4, 1, 2, 2)

    def forbidden(x):
        raise AssertionError("noise was drawn")

    DDPM(steps=None, variance="fixed_large").p_sample(
        best_eps(diffusion), diffusion, x, 0, -1, forbidden
    )
    DDIM(steps=10, eta=1.0).p_sample(best_eps(diffusion), diffusion, x, 10, -1, forbidden)


def test_deterministic_ddim_draws_no_noise():
    def forbidden(x):
        raise AssertionError("noise was drawn")

    diffusion = diffusion_of("linear")
    steps = list(
        DDIM(steps=7, eta=0.0)(best_eps(diffusion), diffusion, torch.randn(2, 1, 1, 1), forbidden)
    )
    assert len(steps) == 7


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 999, 1000])
def test_timesteps(steps):
    pairs = timesteps(1000, steps)
    chosen = [t for t, _ in pairs]
    assert len(chosen) == steps
    assert chosen[0] == 999
    assert chosen == sorted(set(chosen), reverse=True)
    assert [s for _, s in pairs] == [*chosen[1:], -1]
    assert steps == 1 or chosen[-1] == 0


def test_variance_chooses_itself():
    assert DDPM(steps=None, variance="auto").large(1000)
    assert DDPM(steps=1000, variance="auto").large(1000)
    assert not DDPM(steps=50, variance="auto").large(1000)


def test_a_large_variance_on_few_steps_is_warned_about(caplog):
    DDPM(steps=50, variance="fixed_large")
    assert "too much noise" in caplog.text


def test_full_length_ddpm_is_eq_7():
    """The step from s to t, with s = t - 1, has the coefficients of q_posterior and beta_t."""
    diffusion = diffusion_of("linear")
    x_t, z = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2)
    for t in (1, 10, 999):
        ts = torch.full((4,), t)
        x_0, _ = diffusion.denoise(best_eps(diffusion), x_t, ts)
        mean, small = diffusion.q_posterior(x_0, x_t, ts)
        for variance, sigma2 in (("fixed_large", diffusion.betas[t]), ("fixed_small", small)):
            sampler = DDPM(steps=None, variance=variance)
            found = sampler.p_sample(best_eps(diffusion), diffusion, x_t, t, t - 1, lambda x: z)
            torch.testing.assert_close(found, mean + sigma2.sqrt() * z, atol=1e-5, rtol=1e-4)


def test_ddpm_visits_every_step_once():
    diffusion = GaussianDiffusion(betas=linear(20, 1e-6, 1e-3))
    seen = []

    def model(x, t):
        seen.append(t[0].item())
        return x

    assert (
        len(
            list(
                DDPM(steps=None, variance="fixed_large")(model, diffusion, torch.zeros(1, 1, 1, 1))
            )
        )
        == 20
    )
    assert seen == list(reversed(range(20)))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: DDIM(steps=0, eta=0.0), "sampler.steps=0"),
        (lambda: DDIM(steps=10, eta=-0.1), "sampler.eta=-0.1"),
        (lambda: timesteps(1000, 1001), "schedule.T=1000"),
        (lambda: DDPM(steps=None, variance="large"), "sampler.variance=large"),
    ],
)
def test_bad_arguments_are_named(make, key):
    with pytest.raises(InputError, match=key):
        make()


@pytest.mark.parametrize("prediction", ["epsilon"])
def test_diffusers_agrees_step_for_step(prediction):
    diffusers = pytest.importorskip("diffusers")
    diffusion = diffusion_of("linear")
    oracle = diffusers.DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        variance_type="fixed_large",
        clip_sample=True,
        prediction_type=prediction,
    )
    oracle.set_timesteps(1000)
    ours = DDPM(steps=None, variance="fixed_large")
    x_t = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in (999, 600, 30, 1):
        eps = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(t))
        noise = torch.Generator().manual_seed(7)
        expected = oracle.step(eps, t, x_t, generator=noise).prev_sample
        noise = torch.Generator().manual_seed(7)
        found = ours.p_sample(
            lambda x, ts, eps=eps: eps,
            diffusion,
            x_t,
            t,
            t - 1,
            lambda x, noise=noise: torch.randn(x.shape, generator=noise),
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
