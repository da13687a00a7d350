"""Weights of timesteps, and types of errors."""

import pytest
import torch
import torch.nn.functional as F
from support.gaussian import OBJECTIVES, diffusion_of

from ddpm.denoising import training_loss
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.objectives.eps import Eps
from ddpm.objectives.v import V
from ddpm.objectives.x_0 import X0
from ddpm.schedules.linear import linear
from ddpm.weightings.min_snr import MinSNR
from ddpm.weightings.uniform import Uniform

SNR = torch.tensor([1e4, 100.0, 5.0, 1.0, 0.01, 0.0], dtype=torch.float64)


def expect(weights, wanted):
    torch.testing.assert_close(weights, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("objective", OBJECTIVES.values())
def test_uniform_weights_are_equal(objective):
    expect(Uniform().weights(SNR, objective()), [1.0] * 6)


def test_min_snr():
    """min(SNR, 5) / SNR for eps, min(SNR, 5) for x_0, min(SNR, 5) / (SNR + 1) for v."""
    weighting = MinSNR(gamma=5.0)
    expect(weighting.weights(SNR, Eps()), [5e-4, 0.05, 1.0, 1.0, 1.0, 1.0])
    expect(weighting.weights(SNR, X0()), [5.0, 5.0, 5.0, 1.0, 0.01, 1.0])
    expect(weighting.weights(SNR, V()), [5 / 10001, 5 / 101, 5 / 6, 0.5, 0.01 / 1.01, 1.0])


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0, 20.0])
def test_eps_has_full_weight_up_to_gamma(gamma):
    snr = torch.logspace(-6, 6, 200, dtype=torch.float64)
    weights = MinSNR(gamma=gamma).weights(snr, Eps())
    assert (weights[snr <= gamma] == 1).all()
    assert (weights[snr > gamma] < 1).all()


def test_weights_of_a_process():
    for objective in ("x_0", "v"):
        for schedule in ("linear", "linear to zero", "cosine"):
            plain = diffusion_of(schedule, objective)
            diffusion = GaussianDiffusion(
                betas=plain.betas.double(),
                objective=plain.objective,
                weighting=MinSNR(gamma=5.0),
            )
            weights = diffusion.loss_weights
            assert weights.dtype == torch.float32
            assert weights.isfinite().all()
            assert (weights > 0).all()
            assert weights.max() <= 5
            assert (plain.loss_weights == 1).all()
            if "zero" in schedule:
                assert weights[-1] == 1
            a = diffusion.alphas_cumprod_at(500)
            scale = 1 if objective == "x_0" else 1 / (1 - a)
            assert weights[500].item() == pytest.approx(min(a / (1 - a), 5) / scale, rel=1e-5)


def test_the_weight_is_on_the_squared_error_of_x_0():
    """The same x_0_hat has the same loss for every objective."""
    x_0 = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    wrong = x_0 + 0.1 * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(2))
    t = torch.arange(16) * 60 + 20
    losses = []
    for objective in (Eps(), X0(), V()):
        diffusion = GaussianDiffusion(
            betas=linear(1000, 1e-4, 0.02), objective=objective, weighting=MinSNR(gamma=5.0)
        )
        alpha, sigma = diffusion.alpha_sigma_like(x_0, t)
        x_t = diffusion.q_sample(x_0, t, eps)
        output = objective.target(wrong, (x_t - alpha * wrong) / sigma, alpha, sigma)
        losses.append(training_loss(diffusion, lambda x, t, o=output: o, x_0, t, eps).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    ("loss_type", "function"),
    [
        ("mse", lambda d: d**2),
        ("l1", torch.abs),
        ("huber", lambda d: torch.where(d.abs() < 1, d**2 / 2, d.abs() - 0.5)),
    ],
)
def test_errors(loss_type, function):
    output, target = torch.randn(2, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = function(output - target).mean((1, 2, 3))
    for objective in (Eps, V, X0):
        torch.testing.assert_close(objective(loss_type=loss_type).error(output, target), expected)
    assert Eps().loss_type == "mse"
    torch.testing.assert_close(Eps().error(output, target).mean(), F.mse_loss(output, target))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Eps(loss_type="l2"), "objective.loss_type=l2: must be one of mse, l1, huber"),
        (lambda: MinSNR(gamma=0.0), "weighting.gamma=0.0"),
        (lambda: MinSNR(gamma=float("nan")), "weighting.gamma=nan"),
    ],
)
def test_bad_arguments_are_named(make, key):
    with pytest.raises(InputError, match=key):
        make()
