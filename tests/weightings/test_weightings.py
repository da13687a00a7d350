"""Weights of timesteps, and types of errors."""

import pytest
import torch
import torch.nn.functional as F
from support.gaussian import OBJECTIVES, diffusion_of

from ddpm.denoising import training_loss
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.objectives.edm import EDM
from ddpm.objectives.eps import Eps
from ddpm.objectives.v import V
from ddpm.objectives.velocity import Velocity
from ddpm.objectives.x_0 import X0
from ddpm.schedules.linear import linear
from ddpm.weightings.edm import EDMWeights
from ddpm.weightings.loss_of import LossOf
from ddpm.weightings.min_snr import MinSNR
from ddpm.weightings.p2 import P2
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


# --- the loss of one prediction, whatever is predicted

PREDICTIONS = {
    **{"eps": Eps, "x_0": X0, "v": V, "velocity": Velocity},
    "edm": lambda: EDM(sigma_data=0.5),
}
SAME_LOSS = {
    **{q: LossOf(quantity=q, max_weight=None) for q in ("eps", "x_0", "v", "velocity")},
    "edm": EDMWeights(sigma_data=0.5, max_weight=None),
    "min_snr": MinSNR(gamma=5.0),
    "p2": P2(gamma=1.0, k=1.0),
}


def loss_and_gradient(objective, weighting):
    """Of a linear network that predicts x_0, whose output is written as this objective's."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 6, generator=g, dtype=torch.float64).requires_grad_()
    x_0, eps = torch.randn(2, 64, 6, generator=g, dtype=torch.float64)
    a = torch.linspace(1e-3, 0.9999, 64, dtype=torch.float64)[:, None]
    alpha, sigma = a.sqrt(), (1 - a).sqrt()
    x_t = alpha * x_0 + sigma * eps
    x_0_hat = x_t @ weight
    output = objective.target(x_0_hat, (x_t - alpha * x_0_hat) / sigma, alpha, sigma)
    error = objective.error(output, objective.target(x_0, eps, alpha, sigma))
    loss = (weighting.weights((a / (1 - a)).flatten(), objective) * error).mean()
    return loss.item(), torch.autograd.grad(loss, weight)[0]


@pytest.mark.parametrize("weighting", SAME_LOSS)
@pytest.mark.parametrize("objective", PREDICTIONS)
def test_weighted_loss_does_not_depend_on_the_objective(objective, weighting):
    """What remains is the parametrisation of the network, which is the same here."""
    wanted, gradient = loss_and_gradient(X0(), SAME_LOSS[weighting])
    found, other = loss_and_gradient(PREDICTIONS[objective](), SAME_LOSS[weighting])
    assert found == pytest.approx(wanted, rel=1e-6)
    torch.testing.assert_close(other, gradient, rtol=1e-6, atol=1e-6 * gradient.abs().max().item())


@pytest.mark.parametrize("quantity", ["eps", "x_0", "v", "velocity"])
def test_weights_are_equal_for_the_loss_of_the_predicted_quantity(quantity):
    expect(LossOf(quantity=quantity).weights(SNR[:-1], PREDICTIONS[quantity]()), [1.0] * 5)


def test_weights_are_limited_and_the_limit_is_reported():
    snr = torch.tensor([1e6, 1e4, 1.0, 1e-2], dtype=torch.float64)
    weighting = LossOf(quantity="v", max_weight=1000.0)
    expect(weighting.weights(snr, X0()), [1000.0, 1000.0, 2.0, 1.01])
    description = weighting.describe(snr, X0())
    assert "max_weight=1000 at 2 of 4 steps" in description
    assert "1e+06" in description
    assert weighting.describe(snr[2:], X0()) is None
    free = LossOf(quantity="v", max_weight=None)
    assert free.weights(snr, X0())[0] == 1e6 + 1
    assert free.describe(snr, X0()) is None


def test_pure_noise_is_trained_by_every_weighting():
    zero = torch.zeros(1, dtype=torch.float64)
    for weighting in (*SAME_LOSS.values(), LossOf(quantity="eps")):
        for name, objective in PREDICTIONS.items():
            if name != "eps":
                assert weighting.weights(zero, objective()) > 0


def test_p2():
    """1 / (k + SNR)^gamma for eps (Choi et al. 2022)."""
    expect(P2(gamma=1.0, k=1.0).weights(SNR[1:-1], Eps()), [1 / 101, 1 / 6, 0.5, 1 / 1.01])
    expect(P2(gamma=0.5, k=3.0).weights(SNR[3:4], Eps()), [0.5])


def test_edm_weights():
    """(s^2 + sigma_data^2) / (s sigma_data)^2 on x_0; none on the preconditioned network."""
    s = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    weights = EDMWeights(sigma_data=0.5).weights(s**-2, X0())
    torch.testing.assert_close(weights, (s**2 + 0.25) / (0.5 * s) ** 2)
    expect(EDMWeights(sigma_data=0.5).weights(SNR, EDM(sigma_data=2.0)), [1.0] * 6)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: LossOf(quantity="epsilon"), "weighting.quantity=epsilon"),
        (lambda: LossOf(quantity="v", max_weight=0), "weighting.max_weight=0"),
        (lambda: EDMWeights(sigma_data=0), "weighting.sigma_data=0"),
        (lambda: P2(gamma=0, k=1.0), "weighting.gamma=0"),
        (lambda: P2(gamma=1.0, k=0), "weighting.k=0"),
    ],
)
def test_bad_weights_are_refused(make, key):
    with pytest.raises(InputError, match=key):
        make()
