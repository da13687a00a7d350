import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ddpm.likelihood import (
    bits,
    discretized_log_likelihood,
    normal_kl,
    prior_bits,
    schedule_bound,
    vb_term,
)
from ddpm.schedules.linear import linear

LEVELS_64 = torch.arange(256, dtype=torch.float64) / 127.5 - 1
GREY_LEVELS = LEVELS_64.float()


def linear_log_snr(T):
    betas = linear(T, 1e-4, 0.02, rescale=True, zero_terminal_snr=False)
    return (1 - betas).cumprod(0).logit()  # (T,), float64


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# terms


def test_normal_kl_agrees_with_torch():
    mean_1, log_variance_1, mean_2, log_variance_2 = randn(4, 5, 1, 3, 3).double()
    expected = kl_divergence(
        Normal(mean_1, (log_variance_1 / 2).exp()), Normal(mean_2, (log_variance_2 / 2).exp())
    )
    found = normal_kl(mean_1, log_variance_1, mean_2, log_variance_2)
    torch.testing.assert_close(found, expected)
    assert (normal_kl(mean_1, log_variance_1, mean_1, log_variance_1) == 0).all()


def test_normal_kl_of_almost_equal_variances_survives_float32():
    zero, close = torch.zeros(1), torch.full((1,), 1e-3)
    assert normal_kl(zero, close, zero, zero).item() == pytest.approx(1e-6 / 4, rel=1e-3)


@pytest.mark.parametrize("mean", [-1.3, -1.0, -0.2, 0.0, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("std", [1e-5, 1e-3, 0.01, 0.1, 1.0, 10.0])
def test_probabilities_of_all_grey_levels_sum_to_1(mean, std):
    # a mean on the edge of two bins asks, in float32, for a deviation that float32 can tell from 0
    dtype = torch.float64 if std < 1e-3 else torch.float32
    x_0, mean, std = LEVELS_64.to(dtype), torch.tensor(mean, dtype=dtype), torch.tensor(std)
    found = discretized_log_likelihood(x_0, mean, std.to(dtype).log())
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("std", [0.003, 0.01, 0.1, 1.0])
def test_probability_of_a_grey_level_is_the_integral_over_its_bin(std):
    mean = 0.1
    found = discretized_log_likelihood(GREY_LEVELS, torch.tensor(mean), torch.tensor(std).log())
    edges = (LEVELS_64[:-1] + 1 / 255 - mean) / std  # between neighbours
    below = torch.cat([torch.zeros(1), torch.special.ndtr(edges), torch.ones(1)])
    expected = below.diff()
    tail = expected < 1e-9  # where the difference of two numbers near 1 says little itself
    torch.testing.assert_close(
        found.double().exp()[~tail], expected[~tail].double(), rtol=3e-4, atol=0
    )
    assert (found[tail] < math.log(1e-8)).all()


def test_likelihood_in_the_tails_is_the_minimum_with_finite_gradient():
    x_0 = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    for std in (1e-10, 1e-3, 1e6):
        mean = torch.tensor([1.0, 1.0, 0.0, -1.0, -1.0], requires_grad=True)
        log_std = torch.full((5,), math.log(std), requires_grad=True)
        found = discretized_log_likelihood(x_0, mean, log_std)
        found.sum().backward()
        assert (found >= math.log(1e-12) - 1e-5).all()
        assert found.isfinite().all()
        assert mean.grad.isfinite().all()
        assert log_std.grad.isfinite().all()
        if std < 1:
            assert found[[0, 1, 3, 4]].tolist() == pytest.approx([math.log(1e-12)] * 4)


def test_the_likelihood_and_its_gradient_are_alike_in_both_tails():
    """To 6 sigma out, in float32."""
    x_0 = GREY_LEVELS[1:-1]
    found = []
    for sign in (1, -1):
        mean, log_std = torch.tensor([sign * 0.1, math.log(0.15)], requires_grad=True)
        each = discretized_log_likelihood(sign * x_0, mean, log_std)
        grads = [torch.autograd.grad(one, (mean, log_std), retain_graph=True) for one in each]
        found.append((each, sign * torch.tensor(grads)[:, 0], torch.tensor(grads)[:, 1]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)


def test_gradient_of_the_likelihood():
    x_0, mean = LEVELS_64[::25], 0.3 * randn(11).double()
    log_std = (-2 + randn(11, seed=1)).double()
    assert torch.autograd.gradcheck(
        lambda m, s: discretized_log_likelihood(x_0, m, s),
        (mean.requires_grad_(), log_std.requires_grad_()),
    )


def test_bits_are_means_over_the_dimensions():
    assert bits(torch.full((2, 3, 4, 4), math.log(2))).tolist() == pytest.approx([1, 1])


def test_prior_term_of_the_papers_schedule():
    """L_T of about 1e-5 bits/dim: section 4 of Ho et al. 2020, and 1.46e-5 for E[x_0^2] = 0.5."""
    x_0 = torch.full((2, 1, 4, 4), 0.5**0.5)
    x_0[1] *= 0.5**0.5
    found = prior_bits(x_0, linear_log_snr(1000)[-1].sigmoid().float())
    assert found.tolist() == pytest.approx([1.46e-5, 0.73e-5], rel=5e-3)
    assert (found < 1.5e-5).all()
    assert (prior_bits(x_0, torch.tensor(0.0)) == 0).all()


def test_prior_is_a_normal_kl():
    x_0, a = rand(3, 1, 2, 2), torch.tensor(0.3)
    expected = kl_divergence(Normal(a.sqrt() * x_0, (1 - a).sqrt()), Normal(0.0, 1.0))
    torch.testing.assert_close(prior_bits(x_0, a), expected.mean((1, 2, 3)) / math.log(2))


def test_vb_term_is_a_kl_and_at_0_a_likelihood():
    x_0 = GREY_LEVELS[:192].reshape(2, 6, 4, 4)
    mean_q, mean_p = x_0 + 0.01 * randn(2, *x_0.shape)
    log_variance_q, log_variance_p = -8 + 0.3 * randn(2, *x_0.shape, seed=1)
    found = vb_term(x_0, mean_q, log_variance_q, mean_p, log_variance_p, torch.tensor([0, 7]))
    assert found.shape == (2,)
    likelihood = discretized_log_likelihood(x_0, mean_p, log_variance_p / 2)
    kl = normal_kl(mean_q, log_variance_q, mean_p, log_variance_p)
    expected = torch.stack([-likelihood[0].mean(), kl[1].mean()]) / math.log(2)
    torch.testing.assert_close(found, expected)


def test_the_hybrid_loss_trains_only_the_variance():
    x_0, t = GREY_LEVELS[::16].reshape(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    mean = (x_0 + 0.01).requires_grad_()
    log_variance_p = torch.full_like(x_0, -7.0).requires_grad_()
    args = x_0, torch.full_like(x_0, -8.0), mean.detach(), log_variance_p, t
    vb_term(x_0, *args).sum().backward()
    assert mean.grad is None
    assert (log_variance_p.grad != 0).all()


# the estimate of the whole


class Gaussian:
    """Pixels ~ N(mean, std^2), for which all is known: the best x_0_hat, and the bound with it."""

    def __init__(self, log_snr, mean=0.1, std=0.2):
        self.log_snr, self.mean, self.std = log_snr, mean, std

    def draw(self, *shape, seed=0):
        return self.mean + self.std * randn(*shape, seed=seed)

    def predict_x_0(self, x_t, t):
        """E[x_0 | x_t]."""
        a = self.log_snr[t].sigmoid().reshape(-1, 1, 1, 1)
        gain = a.sqrt() * self.std**2 / (a * self.std**2 + 1 - a)
        return self.mean + gain * (x_t - a.sqrt() * self.mean)

    def exact_bound(self):
        """In bits/dim, from alphas_cumprod in float64, one sum at a time."""
        a = self.log_snr.double().sigmoid()
        square = self.mean**2 + self.std**2
        prior = 0.5 * (a[-1] * square - a[-1] - torch.log(1 - a[-1]))
        snr = a / (1 - a)
        error = self.std**2 * (1 - a) / (a * self.std**2 + 1 - a)
        steps = (0.5 * (snr[:-1] - snr[1:]) * error[1:]).sum()
        # x_0 off by eps / sqrt(snr): the bin is at eps +- sqrt(snr) / 255, whatever x_0 is
        eps, half = torch.linspace(-9, 9, 20_001, dtype=torch.float64), snr[0].sqrt() / 255
        p = torch.special.ndtr(half - eps.abs()) - torch.special.ndtr(-half - eps.abs())
        density = torch.exp(-(eps**2) / 2) / math.sqrt(2 * math.pi)
        reconstruction = torch.trapezoid(-p.clamp(min=1e-12).log() * density, eps)
        return torch.stack([prior, steps, reconstruction]) / math.log(2)


@pytest.mark.parametrize("T", [2, 10, 100])
@pytest.mark.parametrize("ends", [(9.21, -10.1), (6.0, -1.0)])
def test_schedule_bound_is_unbiased(T, ends):
    """Against the closed form, to five standard errors."""
    data = Gaussian(torch.linspace(*ends, T))
    found = []
    for seed in range(100):
        x_0, eps = data.draw(64, 1, 4, 4, seed=2 * seed), randn(64, 1, 4, 4, seed=2 * seed + 1)
        t = (rand(64, seed=seed) * T).long()
        found.append(schedule_bound(data.log_snr, data.predict_x_0, x_0, t, eps))
    found = torch.stack(found).double()
    standard_error = found.std().item() / 10
    expected = data.exact_bound().sum().item()
    assert standard_error < 0.05 * expected
    assert found.mean().item() == pytest.approx(expected, abs=5 * standard_error)


def test_schedule_bound_over_every_t():
    """With each t equally often no noise comes from t: the three parts to a percent."""
    data = Gaussian(linear_log_snr(100).float())
    x_0, eps = data.draw(100, 1, 64, 64), randn(100, 1, 64, 64, seed=1)
    found = schedule_bound(data.log_snr, data.predict_x_0, x_0, torch.arange(100), eps)
    assert found.item() == pytest.approx(data.exact_bound().sum().item(), rel=0.01)


def test_bound_of_a_perfect_prediction():
    log_snr, x_0 = linear_log_snr(50).float(), rand(8, 1, 4, 4) - 0.5
    t, eps = torch.full((8,), 20), randn(8, 1, 4, 4)
    found = schedule_bound(log_snr, lambda x_t, t: x_0, x_0, t, eps)
    log_std = -log_snr[0] / 2
    likelihood = discretized_log_likelihood(x_0, x_0 + log_std.exp() * eps, log_std)
    expected = prior_bits(x_0, log_snr[-1].sigmoid()) + bits(-likelihood)
    torch.testing.assert_close(found, expected.mean())


def test_steps_are_normal_kls():
    """The term of t is KL(q(x_{t-1} | x_t, x_0) || q(x_{t-1} | x_t, x_0_hat)), Eq. 6 and 7."""
    T, t = 20, torch.tensor([7])
    log_snr = torch.linspace(5, -5, T).double()
    x_0, x_0_hat, eps = 0.3 * randn(3, 1, 1, 4, 4).double()
    a = log_snr.sigmoid()
    beta, a_t, a_s = 1 - a[7] / a[6], a[7], a[6]
    variance = beta * (1 - a_s) / (1 - a_t)
    kl = normal_kl(
        a_s.sqrt() * beta / (1 - a_t) * x_0,
        variance.log(),
        a_s.sqrt() * beta / (1 - a_t) * x_0_hat,
        variance.log(),
    )
    wrong, right = (
        schedule_bound(log_snr, lambda x_t, t, x=x: x, x_0, t, eps) for x in (x_0_hat, x_0)
    )
    torch.testing.assert_close(wrong - right, T * bits(kl).mean())


def test_gradient_reaches_every_level_also_through_x_t():
    log_snr = torch.linspace(8, -8, 6).double().requires_grad_()
    x_0, eps = 0.3 * randn(2, 6, 1, 2, 2).double()
    t = torch.arange(6)

    def bound(log_snr):
        return schedule_bound(log_snr, lambda x_t, t: 0.9 * x_t.tanh(), x_0, t, eps)

    bound(log_snr).backward()
    assert (log_snr.grad != 0).all()
    assert torch.autograd.gradcheck(bound, log_snr)
