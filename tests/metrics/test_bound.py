"""Bits per dimension of 8-bit Gaussian pixels, whose entropy is known."""

import math

import pytest
import torch
from support.gaussian import ALL_OBJECTIVES, MEAN, STD, best_network, levels_given

from ddpm.denoising import variance_bound
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.likelihood import prior_bits
from ddpm.metrics.base import Material, Pictures
from ddpm.metrics.bound import Bound, bound, strata
from ddpm.schedules.cosine import cosine
from ddpm.schedules.learned import LearnedSchedule
from ddpm.schedules.linear import linear
from ddpm.schedules.quadratic import quadratic
from ddpm.schedules.rectified import rectified
from ddpm.schedules.sigmoid import sigmoid

SCHEDULES = {
    "linear": lambda T: linear(T, 1e-4, 0.02, rescale=True, zero_terminal_snr=False),
    "quadratic": lambda T: quadratic(T, 1e-4, 0.02, rescale=True, zero_terminal_snr=False),
    "cosine": lambda T: cosine(T, 0.008, 0.999),
    "sigmoid": lambda T: sigmoid(T, -3.0, 3.0, 1.0, 0.999),
    "learned": lambda T: LearnedSchedule(T=T, log_snr_start=6, log_snr_end=-10.1, hidden=16),
    "rectified": lambda T: rectified(T, 1.0),
    "rectified to 0.999": lambda T: rectified(T, 0.999),
}
PAIRS = [(s, o) for s in SCHEDULES for o in ALL_OBJECTIVES if (s, o) != ("rectified", "eps")]
VARIANCES = ["fixed_large", "fixed_small", "learned"]
ENTROPY = 0.5 * math.log2(2 * math.pi * math.e * STD**2) + math.log2(127.5)


def process(schedule, objective="eps", T=40, *, learned=False):
    chosen = ALL_OBJECTIVES[objective](learned_variance=learned)
    return GaussianDiffusion(betas=SCHEDULES[schedule](T), objective=chosen)


def pictures(n, size=16, seed=0):
    noise = torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return ((MEAN + STD * noise + 1) * 127.5).round().clamp(0, 255).byte()


class Exact:
    """Closed forms from alphas_cumprod alone: (T,) each, float64."""

    def __init__(self, diffusion):
        T = diffusion.T
        a = torch.tensor([diffusion.alphas_cumprod_at(t) for t in range(T)], dtype=torch.float64)
        before = torch.cat([a.new_ones(1), a[:-1]])
        self.a, self.beta = a, 1 - a / before
        self.posterior = self.beta * (1 - before) / (1 - a)
        self.low = self.posterior.clone()
        self.low[0] = self.posterior[1]  # posterior[0] is 0
        spread = STD**2 * (1 - a) / (a * STD**2 + 1 - a)  # Var(x_0 | x_t)
        gain = self.beta * before.sqrt() / (1 - a)
        self.mean_error = gain**2 * spread
        self.best = self.posterior + self.mean_error  # of x_{t-1} given x_t
        self.fraction = (self.best / self.low).log() / (self.beta / self.low).log()

    def variance(self, kind):
        if kind == "learned":
            return self.best
        chosen = self.beta.clone() if kind == "fixed_large" else self.low.clone()
        chosen[0] = self.low[0]
        return chosen

    def steps(self, kind):
        """Expected bits of each t."""
        variance = self.variance(kind)
        kl = (variance / self.posterior).log() + self.best / variance - 1
        kl[0] = 2 * self._reconstruction(variance[0])
        return 0.5 * kl / math.log(2)

    def _reconstruction(self, variance):
        r = torch.linspace(-8, 8, 20_001, dtype=torch.float64) * self.best[0].sqrt()
        std = variance.sqrt()
        p = torch.special.ndtr((1 / 255 - r.abs()) / std)
        p = p - torch.special.ndtr((-1 / 255 - r.abs()) / std)
        density = torch.exp(-(r**2) / (2 * self.best[0])) / (2 * math.pi * self.best[0]).sqrt()
        return torch.trapezoid(-p.clamp(min=1e-12).log() * density, r)

    def prior(self):
        square = (MEAN**2 + STD**2) * self.a[-1]
        return 0.5 * (square - self.a[-1] - torch.log1p(-self.a[-1])).item() / math.log(2)

    def total(self, kind):
        return self.steps(kind).sum().item() + self.prior()


def learning_network(diffusion):
    """The best network; with a learned variance, the best of these."""
    exact, best = Exact(diffusion), best_network(diffusion)

    def network(given, t):
        output = best(given, t)
        if not diffusion.objective.learned_variance:
            return output
        a = levels_given(diffusion, t).flatten()
        angles = (levels.sqrt().acos() for levels in (exact.a, a))
        number = torch.cdist(*(angle[:, None] for angle in angles)).argmin(0)
        v = 2 * exact.fraction[number] - 1
        return torch.cat([output, v.float().reshape(-1, 1, 1, 1).expand_as(given)], 1)

    return network


@pytest.mark.quick(11)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize(("schedule", "objective"), PAIRS)
def test_bits_per_dimension_match_the_gaussian_entropy(schedule, objective, variance):
    diffusion = process(schedule, objective, learned=variance == "learned")
    exact = Exact(diffusion)
    network = learning_network(diffusion)
    terms = bound(network, diffusion, pictures(32), variance=variance)
    error = terms.total.std().item() / math.sqrt(32)
    found = terms.total.mean().item()
    assert found == pytest.approx(exact.total(variance), abs=3 * error)
    price = exact.total(variance) - exact.total("learned")
    assert price >= 0
    assert found - price == pytest.approx(ENTROPY, abs=min(0.03, 3 * error + 0.002))
    assert terms.prior.mean().item() == pytest.approx(exact.prior(), rel=0.1, abs=1e-9)


@pytest.mark.parametrize("variance", VARIANCES)
def test_each_step_costs_the_kl_of_two_gaussians(variance):
    diffusion = process("linear", learned=variance == "learned")
    terms = bound(learning_network(diffusion), diffusion, pictures(64), variance=variance)
    found, exact = terms.steps.mean(0), Exact(diffusion).steps(variance)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=1e-5)


@pytest.mark.slow
def test_stratified_bound_of_1000_steps_agrees_with_the_full_one():
    diffusion, images = process("linear", T=1000), pictures(32, size=8)
    network = best_network(diffusion)
    every, some = (bound(network, diffusion, images, steps=n) for n in ("all", 100))
    assert every.steps.shape == (32, 1000)
    assert some.steps.shape == (32, 100)
    exact = Exact(diffusion).total("fixed_large")
    assert some.total.mean().item() == pytest.approx(every.total.mean().item(), rel=0.02)
    for terms in (every, some):
        error = terms.total.std().item() / math.sqrt(32)
        assert terms.total.mean().item() == pytest.approx(exact, abs=3 * error)
    assert every.prior.max() < 1e-4


def test_strata_partition_the_steps():
    assert (
        strata(10, "all")
        == strata(10, 10)
        == strata(10, 50)
        == [range(t, t + 1) for t in range(10)]
    )
    for T, steps in ((1000, 100), (1000, 2), (11, 10), (4000, 37)):
        parts = strata(T, steps)
        assert len(parts) == steps
        assert [t for part in parts for t in part] == list(range(T))
    assert [len(part) for part in strata(1000, 100)[:21]] == [1] * 20 + [12]


def test_terms_equal_prior_bits_and_variance_bound():
    """At t = 3, with a perfect prediction."""
    diffusion = process("cosine", learned=True)
    network, image = learning_network(diffusion), pictures(2)
    terms = bound(network, diffusion, image)
    x_0 = diffusion.codec.encode(image)
    last = torch.tensor(diffusion.alphas_cumprod_at(39))
    torch.testing.assert_close(terms.prior, prior_bits(x_0, last).double(), rtol=1e-4, atol=1e-9)
    x_t = diffusion.q_sample(x_0, torch.tensor([3, 3]), torch.zeros_like(x_0))
    _, v = network(x_t, torch.tensor([3, 3])).chunk(2, 1)
    expected = variance_bound(diffusion, x_0, x_t, torch.tensor([3, 3]), x_0, (v + 1) / 2)
    assert (expected < terms.steps[:, 3]).all(), "a perfect prediction costs less"


def measure(diffusion, network, held_out=None, **options):
    metric = Bound(**({"num_images": 16, "steps": 20} | options))
    train = Pictures(pictures(20, seed=1), labels=torch.arange(20) % 10)
    material = Material(train, held_out, network=network, diffusion=diffusion)
    return {score.name: score for score in metric.measure(material)}, metric


def test_scores_add_up_and_are_deterministic():
    diffusion = process("linear")
    held_out = Pictures(pictures(20))
    (scores, metric), (again, other) = (
        measure(diffusion, best_network(diffusion), held_out) for _ in range(2)
    )
    assert scores == again
    assert metric.tables() == other.tables()
    whole = scores.pop("bits_per_dim")
    assert whole.value == pytest.approx(sum(score.value for score in scores.values()))
    assert whole.low < whole.value < whole.high
    assert (whole.n, whole.reference, whole.unit, whole.better) == (16, "held_out", "bits", "lower")
    steps = sum(row["bits"] for row in metric.rows)
    assert steps == pytest.approx(whole.value - scores["bits_per_dim_prior"].value)
    assert metric.tables()["bound"].startswith("t_first,t_last,bits,error\n0,0,")
    assert measure(diffusion, best_network(diffusion))[0]["bits_per_dim"].reference == "train"


def test_a_network_without_a_learned_variance_is_refused():
    diffusion = process("linear")
    with pytest.raises(InputError, match=r"trained with objective.learned_variance=true"):
        measure(diffusion, best_network(diffusion), variance="learned")
