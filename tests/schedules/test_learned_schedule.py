import math
from fractions import Fraction

import pytest
import torch

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.likelihood import schedule_bound
from ddpm.objectives.v import V
from ddpm.schedules.learned import LearnedSchedule
from ddpm.schedules.linear import linear


def learned(T=100, log_snr_start=9.21, log_snr_end=-10.1, hidden=16):
    return LearnedSchedule(T=T, log_snr_start=log_snr_start, log_snr_end=log_snr_end, hidden=hidden)


@torch.no_grad()
def scrambled(schedule, scale, seed=0):
    """The same module with parameters ~ N(0, scale^2)."""
    g = torch.Generator().manual_seed(seed)
    for parameter in schedule.parameters():
        parameter.copy_(scale * torch.randn(parameter.shape, generator=g))
    return schedule


# the curve


@pytest.mark.parametrize("hidden", [8, 16, 256])
@pytest.mark.parametrize("T", [2, 100, 1000])
def test_initial_log_snr_is_linear(T, hidden):
    schedule = learned(T, hidden=hidden)
    assert schedule.T == T
    log_snr = schedule.log_snr()
    assert (log_snr.shape, log_snr.dtype) == ((T,), torch.float32)
    assert (log_snr[0].item(), log_snr[-1].item()) == pytest.approx((9.21, -10.1), abs=1e-4)
    line = torch.linspace(9.21, -10.1, T)
    assert (log_snr - line).abs().max() < 0.002 * 19.31
    assert torch.equal(schedule(), log_snr)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 1e3, 1e6])
@pytest.mark.parametrize("T", [2, 100, 1000, 10_000])
def test_log_snr_falls_strictly_for_any_parameters(T, scale, seed):
    schedule = scrambled(learned(T), scale, seed)
    log_snr, betas = schedule.log_snr(), schedule.betas()
    assert (log_snr.diff() < 0).all()
    assert (log_snr >= -20).all()
    assert (log_snr <= 20).all()
    assert (betas.shape, betas.dtype) == ((T,), torch.float64)
    assert ((betas > 0) & (betas < 1)).all()


@pytest.mark.parametrize(("start", "end"), [(1e6, 1e6), (-1e6, -1e6), (1e6, -1e6), (-1e6, 1e6)])
def test_ends_keep_their_order_for_extreme_parameters(start, end):
    schedule = learned()
    with torch.no_grad():
        schedule.start_logit.fill_(start)
        schedule.end_logit.fill_(end)
    log_snr = schedule.log_snr()
    assert log_snr[0] - log_snr[-1] >= 2 - 1e-5
    assert (log_snr.diff() < 0).all()


@pytest.mark.parametrize("scale", [None, 1.0, 10.0])
def test_betas_agree_with_log_snr(scale):
    schedule = learned(1000) if scale is None else scrambled(learned(1000), scale)
    betas = schedule.betas()
    assert not betas.requires_grad
    noise = -torch.log1p(-betas).cumsum(0)  # -log alphas_cumprod, where a product would cancel
    found = -torch.log(torch.expm1(noise))
    torch.testing.assert_close(found.float(), schedule.log_snr(), rtol=1e-4, atol=1e-4)


def test_betas_of_a_linear_log_snr_are_exact():
    """Against the ratio of two sigmoids in exact arithmetic."""
    schedule = learned(1000, hidden=64)
    snr = [Fraction(math.exp(x)) for x in schedule._log_snr().tolist()]
    alphas_cumprod = [s / (1 + s) for s in snr]
    expected = [1 - a / b for a, b in zip(alphas_cumprod, [1, *alphas_cumprod], strict=False)]
    assert schedule.betas().tolist() == pytest.approx([float(b) for b in expected], rel=1e-11)


def test_initialisation_is_deterministic():
    state = torch.get_rng_state()
    one, other = learned(), learned()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.log_snr(), other.log_snr())


def test_state_dict_round_trip():
    schedule, other = scrambled(learned(), 1.0), learned()
    assert not torch.equal(schedule.log_snr(), other.log_snr())
    other.load_state_dict(schedule.state_dict())
    assert torch.equal(schedule.log_snr(), other.log_snr())
    assert torch.equal(schedule.betas(), other.betas())
    assert set(schedule.state_dict()) == {name for name, _ in schedule.named_parameters()}


@pytest.mark.parametrize("T", [3, 100])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_gradients_reach_every_parameter(T, scale):
    schedule = learned(T) if scale is None else scrambled(learned(T), scale)
    (schedule.log_snr() ** 3).sum().backward()
    for name, parameter in schedule.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).all(), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"T": 1}, "schedule.T=1"),
        ({"hidden": 0}, "schedule.hidden=0"),
        ({"log_snr_start": -5.0, "log_snr_end": 5.0}, "schedule.log_snr_start=-5.0"),
        ({"log_snr_start": 1.0, "log_snr_end": 0.0}, "schedule.log_snr_end=0.0"),
        ({"log_snr_start": 20.0}, "log_snr_start < 20"),
        ({"log_snr_end": -20.0}, "-20 < log_snr_end"),
        ({"log_snr_end": math.nan}, "schedule.log_snr_end=nan"),
    ],
)
def test_bad_arguments_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        learned(**options)


# trained by the bound


def predictor(log_snr, mean, std):
    """E[x_0 | x_t] for pixels ~ N(mean, std^2)."""

    def predict_x_0(x_t, t):
        a = log_snr[t].sigmoid().reshape(-1, 1, 1, 1)
        gain = a.sqrt() * std**2 / (a * std**2 + 1 - a)
        return mean + gain * (x_t - a.sqrt() * mean)

    return predict_x_0


def exact_bound(betas, mean, std):
    """The bound in bits/dim that betas (T,) reach on pixels ~ N(mean, std^2), in float64.

    From alphas_cumprod alone: the prior's KL, the best mean squared errors of x_0, and the chance
    of noise of variance (1 - a) / a to be taken back to the right one of 256 grey levels.
    """
    a = (1 - betas).cumprod(0)
    prior = 0.5 * (a[-1] * (mean**2 + std**2) - a[-1] - torch.log1p(-a[-1]))
    snr, error = a / (1 - a), std**2 * (1 - a) / (a * std**2 + 1 - a)
    steps = 0.5 * ((snr[:-1] - snr[1:]) * error[1:]).sum()
    eps, half = torch.linspace(0, 9, 10_001, dtype=torch.float64), snr[0].sqrt() / 255
    p = torch.special.ndtr(half - eps) - torch.special.ndtr(-half - eps)
    density = torch.exp(-(eps**2) / 2) * math.sqrt(2 / math.pi)  # of |eps|
    reconstruction = torch.trapezoid(-p.clamp(min=1e-12).log() * density, eps)
    return ((prior + steps + reconstruction) / math.log(2)).item()


def trained(T, mean, std, steps, seed):
    schedule = learned(T, hidden=32)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.02)
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x_0 = mean + std * torch.randn(64, 1, 4, 4, generator=g)
        t = torch.randint(T, (64,), generator=g)
        eps = torch.randn(x_0.shape, generator=g)
        log_snr = schedule.log_snr()
        loss = schedule_bound(log_snr, predictor(log_snr, mean, std), x_0, t, eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return schedule


@pytest.mark.slow
@pytest.mark.parametrize(("T", "std"), [(50, 0.2), (100, 0.05)])
def test_training_makes_the_bound_tighter(T, std):
    mean = 0.1
    fixed = linear(T, 1e-4, 0.02, rescale=True, zero_terminal_snr=False)
    before, after = learned(T, hidden=32), trained(T, mean, std, steps=400, seed=0)
    assert (after.log_snr().diff() < 0).all()
    bounds = [exact_bound(betas, mean, std) for betas in (fixed, before.betas(), after.betas())]
    assert bounds[2] < min(bounds[:2])
    # the entropy of the grey levels is a lower bound, and nearly reached
    entropy = math.log2(std * math.sqrt(2 * math.pi * math.e) * 127.5)
    assert entropy < bounds[2] < entropy + 0.15


def test_coefficients_are_refreshed_from_the_schedule():
    """Loading a state dict refreshes the coefficients, and so does `refresh`."""
    one = GaussianDiffusion(betas=learned(), objective=V())
    other = GaussianDiffusion(betas=scrambled(learned(), 1.0), objective=V())
    assert one.alpha_sigma(50) != other.alpha_sigma(50)
    one.load_state_dict(other.state_dict())
    scrambled(other.schedule, 0.5)
    assert torch.equal(one.betas, scrambled(learned(), 1.0).betas().float())
    other.refresh()
    assert torch.equal(other.betas, other.schedule.betas().float())
    a = (1 - other.schedule.betas()).cumprod(0)[50].item()
    assert other.alpha_sigma(50) == (math.sqrt(a), math.sqrt(1 - a))
