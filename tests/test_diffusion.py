import math

import pytest
import torch
from support.gaussian import OBJECTIVES, diffusion_of
from torch import nn

from ddpm.denoising import predict, training_loss
from ddpm.diffusion import GaussianDiffusion, extract
from ddpm.errors import InputError
from ddpm.objectives.eps import Eps
from ddpm.objectives.v import V
from ddpm.objectives.x_0 import X0
from ddpm.randomness import StepNoise, mix
from ddpm.schedules.cosine import cosine
from ddpm.schedules.linear import linear
from ddpm.timesteps.base import Timesteps
from ddpm.weightings.min_snr import MinSNR
from ddpm.weightings.uniform import Uniform


@pytest.fixture(params=["linear", "cosine"])
def diffusion(request):
    return diffusion_of(request.param)


def draw(diffusion, seed=0):
    g = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(64, 1, 4, 4, generator=g) * 2 - 1
    t = torch.randint(diffusion.T, (64,), generator=g)
    return x_0, t, torch.randn(x_0.shape, generator=g)


# --- coefficients


def test_extract_broadcasts():
    a = torch.arange(5.0)
    assert extract(a, torch.tensor([4, 0]), torch.zeros(2, 3, 1, 1)).tolist() == [[[[4]]], [[[0]]]]


def test_known_values():
    linear = diffusion_of("linear")
    assert linear.alphas_cumprod[999].item() == pytest.approx(4.0358e-5, rel=1e-4)
    assert linear.alphas_cumprod_at(999) == pytest.approx(4.0358e-5, rel=1e-4)
    assert linear.alphas_cumprod_at(-1) == 1
    assert linear.posterior_variance[0] == 0
    assert linear.posterior_variance[1].item() == pytest.approx(5.4532e-5, rel=1e-4)
    assert diffusion_of("cosine").betas[0].item() == pytest.approx(4.12842e-5, rel=1e-5)


def test_q_sample_is_the_iterated_step(diffusion):
    """t + 1 steps of Eq. 2 have the mean and the variance of Eq. 4's single step."""
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(diffusion.betas.double().tolist()):
        mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
        if t in (0, 10, 500, 998):
            one, zero = torch.ones(1, 1), torch.zeros(1, 1)
            ts = torch.tensor([t])
            assert diffusion.q_sample(one, ts, zero).item() == pytest.approx(mean, abs=1e-5)
            assert diffusion.q_sample(zero, ts, one).item() ** 2 == pytest.approx(
                variance, abs=1e-5
            )


def test_q_posterior_is_bayes_rule(diffusion):
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0)."""
    for t in (1, 20, 700):
        a_prev, beta = diffusion.alphas_cumprod_at(t - 1), diffusion.betas[t].item()
        x_0, x_t = 0.3, -0.8
        precision = (1 - beta) / beta + 1 / (1 - a_prev)
        mean = ((1 - beta) ** 0.5 / beta * x_t + a_prev**0.5 / (1 - a_prev) * x_0) / precision
        found = diffusion.q_posterior(
            torch.tensor([[x_0]]), torch.tensor([[x_t]]), torch.tensor([t])
        )
        assert found[0].item() == pytest.approx(mean, rel=1e-3)
        assert found[1].item() == pytest.approx(1 / precision, rel=1e-3)


def test_posterior_mean_is_eq_11_without_clipping():
    diffusion = diffusion_of()
    x_t, eps = torch.randn(2, 8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    t = torch.full((8,), 300)
    x_0 = Eps().predict_x_0(x_t, eps, *diffusion.alpha_sigma_like(x_t, t))
    mean, _ = diffusion.q_posterior(x_0, x_t, t)
    beta, a = diffusion.betas[300], diffusion.alphas_cumprod[300]
    expected = (x_t - beta / (1 - a).sqrt() * eps) / (1 - beta).sqrt()
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [[0.0, 0.1], [0.1, 1.1], [1.0, 0.1], [float("nan")], [[0.1]], []])
def test_betas_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match="betas"):
        GaussianDiffusion(betas=torch.tensor(bad))


@pytest.mark.parametrize(
    "schedule", ["linear to zero", "quadratic to zero", "cosine to zero", "sigmoid to zero"]
)
def test_zero_terminal_snr(schedule):
    for objective in ("v", "x_0"):
        diffusion = diffusion_of(schedule, objective)
        assert diffusion.alphas_cumprod_at(999) == 0
        assert diffusion.alphas_cumprod[999] == diffusion.snr[999] == 0
        assert diffusion.betas[999] == diffusion.sqrt_one_minus_alphas_cumprod[999] == 1
        assert diffusion.alphas_cumprod_at(998) > 0
        assert all(b.isfinite().all() for b in diffusion.buffers())
        x_0, _, eps = draw(diffusion)
        t = torch.full((64,), 999)
        assert torch.equal(diffusion.q_sample(x_0, t, eps), eps)
        loss = training_loss(diffusion, lambda x, t: torch.zeros_like(x), x_0, t, eps)
        assert loss.item() == pytest.approx((x_0**2).mean().item(), rel=1e-6)
    with pytest.raises(InputError, match=r"zero_terminal_snr=true.*objective=v or x_0"):
        diffusion_of(schedule, "eps")


# --- predictions


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_predict_inverts_the_target(objective):
    diffusion = diffusion_of("linear", objective)
    x_0, t, eps = draw(diffusion)
    alpha, sigma = diffusion.alpha_sigma_like(x_0, t)
    x_t = diffusion.q_sample(x_0, t, eps)
    target = diffusion.objective.target(x_0, eps, alpha, sigma)
    found = predict(diffusion, target, x_t, t)
    # float32 keeps 7 digits of x_t, which eps exceeds up to 158-fold in x_0 at t = 999
    loose = 1e-6 / alpha if objective == "eps" else 1e-6
    assert ((found.x_0 - x_0).abs() < loose).all()
    assert ((found.eps - eps).abs() < 1e-6 / sigma).all()


@pytest.mark.parametrize("objective", [Eps(), X0(), V()])
def test_round_trips(objective):
    """x_0 -> target -> x_0 -> eps at every step, float64."""
    diffusion = GaussianDiffusion(betas=linear(1000, 1e-4, 0.02))
    g = torch.Generator().manual_seed(0)
    x_0 = torch.rand(1000, 3, dtype=torch.float64, generator=g) * 2 - 1
    eps = torch.randn(1000, 3, dtype=torch.float64, generator=g)
    a = torch.tensor([diffusion.alphas_cumprod_at(t) for t in range(1000)], dtype=torch.float64)
    alpha, sigma = a.sqrt()[:, None], (1 - a).sqrt()[:, None]
    x_t = alpha * x_0 + sigma * eps
    answer = objective.target(x_0, eps, alpha, sigma)
    again = objective.predict_x_0(x_t, answer, alpha, sigma)
    assert (again - x_0).abs().max() < 1e-10
    eps_again = (x_t - alpha * again) / sigma
    assert (eps_again - eps).abs().max() < 1e-10
    assert (objective.target(again, eps_again, alpha, sigma) - answer).abs().max() < 1e-10


def test_eps_belongs_to_the_clipped_x_0():
    diffusion = diffusion_of()
    x_t, t = torch.full((2, 1, 1, 1), 3.0), torch.tensor([100, 900])
    x_0, eps, _ = predict(diffusion, -torch.ones_like(x_t), x_t, t)
    assert (x_0 == 1).all()
    torch.testing.assert_close(diffusion.q_sample(x_0, t, eps), x_t)


def test_clip_is_an_argument():
    x_t, t = torch.full((1, 1, 1, 1), 3.0), torch.tensor([100])
    betas = linear(1000, 1e-4, 0.02)
    answers = {
        clip: predict(GaussianDiffusion(betas=betas, clip=clip), -torch.ones_like(x_t), x_t, t)
        for clip in (None, (-2.0, 2.0))
    }
    assert answers[None].x_0 > 3
    assert answers[(-2.0, 2.0)].x_0 == 2


def test_a_learned_variance_is_split_from_the_output():
    diffusion = diffusion_of("linear", "v", learned_variance=True)
    x_t, t = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 500, 999])
    answer = torch.randn(4, 3, 2, 2)
    v = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1).expand(4, 3, 2, 2)
    found = predict(diffusion, torch.cat([answer, v], dim=1), x_t, t)
    assert found.fraction[:, :, 0, 0].tolist() == [[0.0, 0.5, 1.0]] * 4
    expected = predict(diffusion_of("linear", "v"), answer, x_t, t)
    assert torch.equal(found.x_0, expected.x_0)
    assert expected.fraction is None


# --- the loss


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_loss_of_a_perfect_and_of_a_zero_prediction(schedule, objective):
    diffusion = diffusion_of(schedule, objective)
    x_0, t, eps = draw(diffusion)
    alpha, sigma = diffusion.alpha_sigma_like(x_0, t)
    target = {"eps": eps, "x_0": x_0, "v": alpha * eps - sigma * x_0}[objective]
    assert training_loss(diffusion, lambda x, t: target, x_0, t, eps) == 0
    silent = training_loss(diffusion, lambda x, t: torch.zeros_like(x), x_0, t, eps)
    assert silent.item() == pytest.approx((target**2).mean().item(), rel=1e-6)


@pytest.mark.parametrize("loss_type", ["mse", "l1", "huber"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_is_the_weighted_mean_of_the_errors(loss_type, gamma):
    diffusion = GaussianDiffusion(
        betas=linear(1000, 1e-4, 0.02),
        objective=Eps(loss_type=loss_type),
        weighting=MinSNR(gamma=gamma) if gamma else Uniform(),
    )
    x_0, t, eps = draw(diffusion)
    loss = training_loss(diffusion, lambda x, t: torch.zeros_like(x), x_0, t, eps)
    d = eps.abs()
    errors = {"mse": d**2, "l1": d, "huber": torch.where(d < 1, d**2 / 2, d - 0.5)}[loss_type]
    snr = diffusion.alphas_cumprod[t] / (1 - diffusion.alphas_cumprod[t])
    weights = (gamma / snr).clamp(max=1) if gamma else torch.ones(64)
    expected = (weights * errors.mean((1, 2, 3))).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_draws_every_timestep():
    diffusion = GaussianDiffusion(betas=cosine(10, 0.008, 0.999))
    seen = set()

    def model(x, t):
        seen.update(t.tolist())
        return x

    training_loss(diffusion, model, torch.zeros(500, 1, 1, 1))
    assert seen == set(range(10))


def test_the_process_chooses_the_timesteps_of_training():
    class Last(Timesteps):
        def probabilities(self, snr):
            return torch.eye(len(snr))[-1]

    last = Last()
    diffusion = GaussianDiffusion(betas=cosine(10, 0.008, 0.999), timesteps=last)
    seen = set()
    training_loss(diffusion, lambda x, t: seen.update(t.tolist()) or x, torch.zeros(5, 1, 1, 1))
    assert seen == {9}
    noise = StepNoise(0, 5, (1, 1, 1), 10, torch.device("cpu"), last)
    plain = StepNoise(0, 5, (1, 1, 1), 10, torch.device("cpu"))
    assert noise(3, slice(None))[0].tolist() == [9] * 5
    generator = torch.Generator().manual_seed(mix(0, "step", 3))
    assert torch.equal(plain(3, slice(None))[0], torch.randint(10, (5,), generator=generator))


def test_loss_passes_noisy_images_and_labels_to_the_network():
    diffusion = diffusion_of()
    x_0, t, eps = draw(diffusion)
    label = torch.arange(64) % 10 - 1

    def model(x_t, steps, labels):
        assert torch.equal(x_t, diffusion.q_sample(x_0, t, eps))
        assert steps is t
        assert labels is label
        return eps

    assert training_loss(diffusion, model, x_0, t, eps, label) == 0


# --- the hybrid loss


class Two(nn.Module):
    """A constant output: a prediction and a variance."""

    def __init__(self, v):
        super().__init__()
        self.answer = nn.Parameter(torch.linspace(-0.5, 0.5, 16).reshape(1, 1, 4, 4))
        self.v = nn.Parameter(torch.full((1, 1, 4, 4), v))

    def forward(self, x_t, t):
        return torch.cat([self.answer, self.v], dim=1).expand(len(x_t), -1, -1, -1)


@pytest.mark.parametrize("weighting", [Uniform(), MinSNR(gamma=5.0)])
@pytest.mark.parametrize("objective", [Eps, X0, V])
def test_the_bound_trains_only_the_variance(objective, weighting):
    betas = linear(1000, 1e-4, 0.02)
    plain = GaussianDiffusion(betas=betas, objective=objective(), weighting=weighting)
    hybrid = GaussianDiffusion(
        betas=betas, objective=objective(learned_variance=True), weighting=weighting
    )
    x_0, t, eps = draw(hybrid)
    t[0] = 0
    model = Two(0.3)
    simple = training_loss(plain, lambda x, t: model(x, t)[:, :1], x_0, t, eps)
    (wanted,) = torch.autograd.grad(simple, model.answer)
    loss = training_loss(hybrid, model, x_0, t, eps)
    found, of_v = torch.autograd.grad(loss, [model.answer, model.v])
    torch.testing.assert_close(found, wanted)
    assert of_v.isfinite().all()
    assert (of_v != 0).all()
    assert loss > simple


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine to zero"])
def test_the_bound_is_the_kl_of_two_normal_distributions(schedule):
    """T vlb_weight KL(q(x_{t-1} | x_t, x_0) || p), in bits per dimension, with torch's own KL."""
    diffusion = diffusion_of(schedule, "v", learned_variance=True, vlb_weight=0.01)
    plain = diffusion_of(schedule, "v")
    x_0, _, eps = draw(diffusion)
    model = Two(-0.4)
    fraction = 0.3
    for step in (1, 2, 100, 700, 999):
        t = torch.full((64,), step)
        loss = training_loss(diffusion, model, x_0, t, eps)
        simple = training_loss(plain, lambda x, t: model(x, t)[:, :1], x_0, t, eps)

        a, b = diffusion.alphas_cumprod_at(step), diffusion.alphas_cumprod_at(step - 1)
        beta = 1 - a / b
        x_t = a**0.5 * x_0.double() + (1 - a) ** 0.5 * eps.double()
        x_0_hat = (a**0.5 * x_t - (1 - a) ** 0.5 * model.answer.double()).clamp(-1, 1)
        means = [
            (b**0.5 * beta * x + (a / b) ** 0.5 * (1 - b) * x_t) / (1 - a) for x in (x_0, x_0_hat)
        ]
        small = beta * (1 - b) / (1 - a)
        std = (beta**fraction * small ** (1 - fraction)) ** 0.5
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(means[0], small**0.5),
            torch.distributions.Normal(means[1], std),
        )
        expected = 0.01 * 1000 * kl.mean().item() / math.log(2)
        assert (loss - simple).item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_last_term_is_the_likelihood_of_a_grey_level():
    """-log p(x_0 | x_1) of the bin around x_0; the small variance is that of t = 1."""
    diffusion = diffusion_of("linear", "x_0", learned_variance=True, vlb_weight=1.0)
    plain = diffusion_of("linear", "x_0")
    x_0 = torch.full((1, 1, 4, 4), 2 * 100 / 255 - 1)
    eps, t = torch.zeros_like(x_0), torch.zeros(1, dtype=torch.int64)
    model = Two(-0.4)
    with torch.no_grad():
        model.answer.copy_(x_0 + 0.01)
    difference = training_loss(diffusion, model, x_0, t, eps) - training_loss(
        plain, lambda x, t: model(x, t)[:, :1], x_0, t, eps
    )
    small, large = diffusion.posterior_variance[1].item(), diffusion.betas[0].item()
    p = torch.distributions.Normal(x_0.double() + 0.01, (large**0.3 * small**0.7) ** 0.5)
    bin_ = p.cdf(x_0.double() + 1 / 255) - p.cdf(x_0.double() - 1 / 255)
    expected = -1000 * bin_.log2().mean().item()
    assert difference.item() == pytest.approx(expected, rel=1e-3)


def test_the_bound_is_least_at_the_right_variance():
    """With x_0_hat = x_0 the posterior's variance is right: fraction 0."""
    diffusion = diffusion_of("linear", "x_0", learned_variance=True)
    x_0, _, eps = draw(diffusion)
    t = torch.randint(1, 1000, (64,), generator=torch.Generator().manual_seed(0))

    def loss(v):
        output = torch.cat([x_0, torch.full_like(x_0, v)], dim=1)
        return training_loss(diffusion, lambda x, t: output, x_0, t, eps).item()

    assert loss(-1.0) == pytest.approx(0, abs=1e-7)
    assert loss(-1.0) < loss(-0.5) < loss(0.0) < loss(1.0)


def test_a_variance_can_be_learned_with_a_single_step():
    diffusion = GaussianDiffusion(
        betas=cosine(1, 0.008, 0.999), objective=Eps(learned_variance=True)
    )
    model = Two(0.0)
    loss = training_loss(diffusion, model, torch.zeros(4, 1, 4, 4))
    loss.backward()
    assert loss.isfinite()
    assert model.answer.grad.isfinite().all()
    assert model.v.grad.isfinite().all()


# --- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("learned", [False, True])
def test_the_process_stays_in_float32_with_a_half_precision_network(dtype, objective, learned):
    diffusion = diffusion_of("linear", objective, learned_variance=learned)
    x_t, t = torch.randn(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    channels = 2 if learned else 1
    found = predict(diffusion, torch.ones(4, channels, 2, 2, dtype=dtype), x_t, t)
    assert all(x.dtype == torch.float32 for x in found if x is not None)
    assert diffusion.sqrt_one_minus_alphas_cumprod[0].item() == pytest.approx(0.01, rel=1e-4)
    assert all(b.dtype == torch.float32 for b in diffusion.buffers())
    seen = []

    def model(x, t):
        seen.append(x.dtype)
        return x.repeat(1, channels, 1, 1).to(dtype)

    loss = training_loss(diffusion, model, x_t, t)
    assert loss.dtype == torch.float32
    assert seen == [torch.float32]
    assert diffusion.q_sample(x_t, t, x_t).dtype == torch.float32
