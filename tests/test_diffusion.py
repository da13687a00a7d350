import pytest
import torch

from ddpm.diffusion import GaussianDiffusion, extract
from ddpm.schedules.cosine import cosine
from ddpm.schedules.linear import linear


@pytest.fixture(params=["linear", "cosine"])
def diffusion(request):
    betas = linear(1000, 1e-4, 0.02) if request.param == "linear" else cosine(1000, 0.008, 0.999)
    return GaussianDiffusion(betas=betas)


def draw(diffusion, seed=0):
    g = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(64, 1, 4, 4, generator=g) * 2 - 1
    t = torch.randint(diffusion.T, (64,), generator=g)
    return x_0, t, torch.randn(x_0.shape, generator=g)


def test_extract_broadcasts():
    a = torch.arange(5.0)
    assert extract(a, torch.tensor([4, 0]), torch.zeros(2, 3, 1, 1)).tolist() == [[[[4]]], [[[0]]]]


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


def test_eps_and_x_0_are_each_others_inverse():
    diffusion = GaussianDiffusion(betas=linear(1000, 1e-4, 0.02))
    x_0, t, eps = draw(diffusion)
    x_t = diffusion.q_sample(x_0, t, eps)
    # float32 keeps 7 digits of x_t, which eps exceeds up to 158-fold in x_0 at t = 999
    error = (diffusion.predict_x_0(x_t, t, eps) - x_0).abs().amax((1, 2, 3))
    assert (error < 1e-6 * diffusion.sqrt_recip_alphas_cumprod[t] + 1e-6).all()
    found = diffusion.predict_eps(x_t, t, diffusion.predict_x_0(x_t, t, eps))
    assert (found - eps).abs().max() < 1e-4


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
    diffusion = GaussianDiffusion(betas=linear(1000, 1e-4, 0.02))
    x_t, eps, t = torch.randn(8, 1, 2, 2), torch.randn(8, 1, 2, 2), torch.full((8,), 300)
    mean, _ = diffusion.q_posterior(diffusion.predict_x_0(x_t, t, eps), x_t, t)
    beta, a = diffusion.betas[300], diffusion.alphas_cumprod[300]
    expected = (x_t - beta / (1 - a).sqrt() * eps) / (1 - beta).sqrt()
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)


def test_loss_of_a_perfect_and_of_a_silent_network(diffusion):
    x_0, t, eps = draw(diffusion)
    assert diffusion.loss(lambda x, t: eps, x_0, t, eps) == 0
    silent = diffusion.loss(lambda x, t: torch.zeros_like(x), x_0, t, eps)
    assert silent.item() == pytest.approx((eps**2).mean().item(), rel=1e-6)


def test_loss_draws_every_timestep():
    diffusion = GaussianDiffusion(betas=linear(10, 1e-5, 1e-3))
    seen = set()

    def model(x, t):
        seen.update(t.tolist())
        return x

    diffusion.loss(model, torch.zeros(500, 1, 1, 1))
    assert seen == set(range(10))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_network_leaves_the_process_in_float32(dtype):
    diffusion = GaussianDiffusion(betas=linear(1000, 1e-4, 0.02))
    x_t, t = torch.randn(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    x_0, eps = diffusion.denoise(lambda x, t: torch.ones_like(x, dtype=dtype), x_t, t)
    assert x_0.dtype == eps.dtype == torch.float32
    assert diffusion.sqrt_one_minus_alphas_cumprod[0].item() == pytest.approx(0.01, rel=1e-4)
    loss = diffusion.loss(lambda x, t: x.to(dtype), x_t, t)
    assert loss.dtype == torch.float32


def test_denoise_clips_x_0_and_takes_eps_along():
    diffusion = GaussianDiffusion(betas=linear(1000, 1e-4, 0.02))
    x_t, t = torch.full((2, 1, 1, 1), 3.0), torch.tensor([100, 900])
    x_0, eps = diffusion.denoise(lambda x, t: -torch.ones_like(x), x_t, t)
    assert (x_0 == 1).all()
    torch.testing.assert_close(diffusion.q_sample(x_0, t, eps), x_t)


@pytest.mark.parametrize("bad", [[0.0, 0.1], [0.1, 1.1], [float("nan")], [[0.1]]])
def test_betas_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="betas"):
        GaussianDiffusion(betas=torch.tensor(bad))
