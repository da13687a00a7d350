"""How t is drawn: densities, strata, importance sampling and its state."""

import itertools
import math

import pytest
import torch
from support.gaussian import diffusion_of

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.objectives.velocity import Velocity
from ddpm.randomness import StepNoise
from ddpm.schedules.linear import linear
from ddpm.schedules.rectified import rectified
from ddpm.timesteps.importance import Importance
from ddpm.timesteps.log_normal import LogNormal
from ddpm.timesteps.logit_normal import LogitNormal
from ddpm.timesteps.uniform import Uniform

CPU = torch.device("cpu")
T = 100
DRAWS = 1_000_000


def process(timesteps, T=T):
    return GaussianDiffusion(betas=rectified(T, 1.0), objective=Velocity(), timesteps=timesteps)


def taught(stratified=False):
    """Importance sampling that has seen the loss 1 + (t mod 7) at each t."""
    importance = Importance(history=2, uniform_share=0.01, stratified=stratified)
    process(importance)
    every = torch.arange(T).repeat(2)
    importance.update(every, 1.0 + every % 7, torch.tensor(False))
    return importance


def normal_cdf(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def density(kind):
    """Probability of each t, computed independently."""
    u = [(t + 1) / T for t in range(T)]
    if kind == "uniform":
        return [1 / T] * T
    if kind == "logit_normal":
        at = [0.0, *(normal_cdf((math.log(v / (1 - v)) - 0.5) / 0.8) for v in u[:-1]), 1.0]
    elif kind == "log_normal":  # sigma / alpha = u / (1 - u); pure noise counts as the step before
        level = [math.log(v / (1 - v)) for v in u[:-1]]
        level.append(level[-1])
        edges = [(a + b) / 2 for a, b in itertools.pairwise(level)]
        at = [0.0, *(normal_cdf((edge + 1.2) / 1.2) for edge in edges), 1.0]
    else:
        losses = [1 + t % 7 for t in range(T)]
        return [0.99 * loss / sum(losses) + 0.01 / T for loss in losses]
    return [b - a for a, b in itertools.pairwise(at)]


MAKE = {
    "uniform": Uniform,
    "logit_normal": lambda **o: LogitNormal(mean=0.5, std=0.8, **o),
    "log_normal": lambda **o: LogNormal(mean=-1.2, std=1.2, **o),
    "importance": taught,
}


@pytest.mark.parametrize("kind", MAKE)
def test_a_million_draws_follow_the_density(kind):
    """Chi-square below its 1 - 1e-6 quantile, steps of few expected draws put together."""
    timesteps = MAKE[kind]()
    if kind != "importance":
        process(timesteps)
    t = timesteps(DRAWS, T, CPU, torch.Generator().manual_seed(0))
    assert t.dtype == torch.int64
    observed = torch.bincount(t, minlength=T).double()
    expected = DRAWS * torch.tensor(density(kind), dtype=torch.float64)
    rare = expected < 20
    groups = [(observed[~rare], expected[~rare])]
    if rare.any():
        groups.append((observed[rare].sum()[None], expected[rare].sum()[None] + 1e-9))
    chi = sum(((o - e) ** 2 / e.clamp(min=1)).sum().item() for o, e in groups)
    freedom = (~rare).sum().item()
    assert chi < freedom + 5 * math.sqrt(2 * freedom) + 10


@pytest.mark.parametrize("kind", MAKE)
def test_strata_have_one_draw_each_and_the_same_density(kind):
    timesteps = MAKE[kind](stratified=True)
    if kind != "importance":
        process(timesteps)
    g = torch.Generator().manual_seed(0)
    ends = torch.tensor(density(kind), dtype=torch.float64).cumsum(0)
    starts = ends - torch.tensor(density(kind), dtype=torch.float64)
    counts = torch.zeros(T)
    for _ in range(400):
        t = timesteps(50, T, CPU, g)
        i = torch.arange(50, dtype=torch.float64)
        assert (starts[t] < (i + 1) / 50 + 1e-6).all()
        assert (ends[t] > i / 50 - 1e-6).all()
        counts += torch.bincount(t, minlength=T)
    wanted = 20_000 * (ends - starts)
    assert ((counts - wanted).abs() < 6 * wanted.sqrt() + 3).all()


def test_uniform_draws_are_those_of_randint():
    for seed in range(3):
        found = Uniform()(64, 1000, CPU, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(found, torch.randint(1000, (64,), generator=generator))


@pytest.mark.parametrize("schedule", ["linear", "cosine to zero", "learned"])
@pytest.mark.parametrize("kind", [k for k in MAKE if k != "importance"])
def test_probabilities_of_every_schedule(schedule, kind):
    snr = diffusion_of(schedule, "v").snr.double()
    p = MAKE[kind]().probabilities(snr)
    assert (p >= 0).all()
    assert p.sum().item() == pytest.approx(len(p) if kind == "uniform" else 1, rel=1e-9)


def test_log_normal_follows_a_schedule_that_learns():
    timesteps = LogNormal(mean=0.0, std=1.0)
    learned = diffusion_of("learned").schedule
    diffusion = GaussianDiffusion(betas=learned, timesteps=timesteps)
    before = timesteps.cumulative.clone()
    with torch.no_grad():
        learned.start_logit.sub_(1.0)
    diffusion.refresh()
    assert not torch.equal(before, timesteps.cumulative)


# --- importance sampling


def test_importance_weights_leave_the_loss_unbiased():
    """The sum over t of p_t w_t L_t is the mean of L_t, exactly."""
    timesteps, every = taught(), torch.arange(T)
    p, weights = timesteps.probabilities(), timesteps.loss_weights(every)
    losses = torch.rand(T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert (p * weights * losses).sum().item() == pytest.approx(losses.mean().item(), rel=1e-6)
    t = timesteps(200_000, T, CPU, torch.Generator().manual_seed(2))
    found = timesteps.loss_weights(t) * (1 + t % 7)
    exact = sum(1 + n % 7 for n in range(T)) / T
    assert found.mean().item() == pytest.approx(exact, abs=5 * found.std().item() / 200_000**0.5)
    assert found.std() < 0.2 * (1 + every % 7).float().std()  # the reason to do it


class Slow:
    """The sampler of Nichol & Dhariwal's description, one loss after the other."""

    def __init__(self, T, history):
        self.history, self.seen = history, [[] for _ in range(T)]

    def update(self, t, losses):
        for i, loss in zip(t.tolist(), losses.tolist(), strict=True):
            self.seen[i] = [*self.seen[i], loss][-self.history :]

    def probabilities(self, share):
        if any(len(seen) < self.history for seen in self.seen):
            return [1 / len(self.seen)] * len(self.seen)
        root = [math.sqrt(sum(x * x for x in seen) / len(seen)) for seen in self.seen]
        return [(1 - share) * r / sum(root) + share / len(root) for r in root]


def test_importance_keeps_the_last_losses_of_each_t():
    timesteps, slow = Importance(history=3, uniform_share=0.1), Slow(5, 3)
    process(timesteps, T=5)
    g = torch.Generator().manual_seed(0)
    for n in range(12):
        t, losses = torch.randint(5, (16,), generator=g), torch.rand(16, generator=g)
        skip = torch.tensor(n % 4 == 3)
        timesteps.update(t, losses, skip)
        if not skip:
            slow.update(t, losses)
        wanted = torch.tensor(slow.probabilities(0.1), dtype=torch.float64)
        torch.testing.assert_close(timesteps.probabilities(), wanted, rtol=1e-6, atol=0)
    assert wanted.std() > 0


def test_importance_is_uniform_until_every_t_is_known():
    timesteps = Importance(history=2, uniform_share=0.01)
    process(timesteps)
    every = torch.arange(T)
    timesteps.update(every, every + 1.0, torch.tensor(False))
    assert (timesteps.loss_weights(every) == 1).all()


def test_state_of_importance_sampling_is_stored_with_the_process():
    timesteps, other = taught(), Importance(history=2, uniform_share=0.01)
    state = process(timesteps).state_dict()
    assert set(state) == {"timesteps.losses", "timesteps.counts"}
    process(other).load_state_dict(state)
    assert torch.equal(other.probabilities(), timesteps.probabilities())
    for name in ("uniform", "log_normal", "logit_normal"):
        assert not process(MAKE[name]()).state_dict()


# --- in training


def test_draws_are_a_function_of_seed_and_step():
    for make in MAKE.values():
        timesteps = make(stratified=True)
        process(timesteps)
        noise = StepNoise(3, 8, (1, 2, 2), T, CPU, timesteps)
        again = StepNoise(3, 8, (1, 2, 2), T, CPU, timesteps)
        noise(0, slice(None))
        assert torch.equal(noise(5, slice(2, 6))[0], again(5, slice(None))[0][2:6])


def test_a_learned_schedule_is_trained_on_uniform_t():
    own = torch.arange(8)
    for timesteps in (None, Uniform(), Uniform(stratified=True)):
        noise = StepNoise(3, 8, (1, 2, 2), T, CPU, timesteps)
        assert noise.uniform_t(5, slice(None), own) is own
    noise = StepNoise(3, 8, (1, 2, 2), T, CPU, LogNormal(mean=0.0, std=1.0))
    t = torch.cat([noise.uniform_t(n, slice(None), own) for n in range(3000)])
    counts = torch.bincount(t, minlength=T)
    assert counts.min() > 240 - 90
    assert counts.max() < 240 + 90
    assert torch.equal(noise.uniform_t(7, slice(2, 4), own), t[7 * 8 + 2 : 7 * 8 + 4])


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: LogitNormal(mean=0.0, std=0.0), "timesteps.std=0"),
        (lambda: LogNormal(mean=0.0, std=-1.0), "timesteps.std=-1"),
        (lambda: Importance(history=0, uniform_share=0.1), "timesteps.history=0"),
        (lambda: Importance(history=1, uniform_share=0.0), "timesteps.uniform_share=0"),
    ],
)
def test_bad_arguments_are_named(make, key):
    with pytest.raises(InputError, match=key):
        make()


def test_process_of_one_step_always_draws_t_0():
    for make in (Uniform, LogitNormal, LogNormal):
        options = {} if make is Uniform else {"mean": 0.0, "std": 1.0}
        timesteps = make(stratified=True, **options)
        GaussianDiffusion(betas=linear(1, 0.5, 0.5, rescale=False), timesteps=timesteps)
        assert (timesteps(4, 1, CPU) == 0).all()
