"""Objectives: their targets, and x_0 from them."""

import pytest
import torch
from support.gaussian import OBJECTIVES

from ddpm.denoising import predict, training_loss
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.objectives.edm import EDM
from ddpm.objectives.eps import Eps
from ddpm.objectives.v import V
from ddpm.objectives.velocity import Velocity
from ddpm.objectives.x_0 import X0
from ddpm.schedules.linear import linear


def draw():
    """x_0, eps, alpha and sigma at many noise levels, float64."""
    g = torch.Generator().manual_seed(0)
    x_0 = torch.rand(200, 1, 2, 2, generator=g, dtype=torch.float64) * 2 - 1
    eps = torch.randn(x_0.shape, generator=g, dtype=torch.float64)
    a = torch.linspace(4e-5, 0.9999, 200, dtype=torch.float64).reshape(-1, 1, 1, 1)
    return x_0, eps, a.sqrt(), (1 - a).sqrt()


EDMS = [lambda s=s: EDM(sigma_data=s) for s in (0.5, 1.0)]


@pytest.mark.parametrize("objective", [*OBJECTIVES.values(), Velocity, *EDMS])
def test_predict_x_0_inverts_the_target(objective):
    x_0, eps, alpha, sigma = draw()
    x_t = alpha * x_0 + sigma * eps
    target = objective().target(x_0, eps, alpha, sigma)
    assert target.shape == x_0.shape
    again = objective().predict_x_0(x_t, target, alpha, sigma)
    assert (again - x_0).abs().max() < 1e-12


def test_targets():
    x_0, eps, alpha, sigma = draw()
    assert torch.equal(Eps().target(x_0, eps, alpha, sigma), eps)
    assert torch.equal(X0().target(x_0, eps, alpha, sigma), x_0)
    torch.testing.assert_close(V().target(x_0, eps, alpha, sigma), alpha * eps - sigma * x_0)


def test_v_is_a_rotation_of_x_t():
    """With alpha = cos(phi) and sigma = sin(phi), v is dx_t / dphi (Salimans & Ho, appendix D)."""
    x_0, eps, alpha, _ = draw()
    phi = alpha.acos().requires_grad_()
    (derivative,) = torch.autograd.grad((phi.cos() * x_0 + phi.sin() * eps).sum(0).sum(), phi)
    v = V().target(x_0, eps, phi.cos(), phi.sin()).detach()
    torch.testing.assert_close(derivative, v.sum((1, 2, 3), keepdim=True))


@pytest.mark.parametrize("objective", OBJECTIVES.values())
def test_error_scale(objective):
    """The change of the output for an x_0 that is off by 1 at this x_t."""
    x_0, eps, alpha, sigma = draw()
    off = objective().target(x_0 + 1, eps - alpha / sigma, alpha, sigma)
    squared = (off - objective().target(x_0, eps, alpha, sigma)) ** 2
    scale = objective().error_scale((alpha / sigma) ** 2).expand_as(squared)
    torch.testing.assert_close(squared, scale)


def test_only_eps_needs_signal():
    assert [o.needs_signal for o in (Eps(), X0(), V())] == [True, False, False]
    pure = torch.zeros(1), torch.ones(1)
    x_t, x_0 = torch.tensor([0.7]), torch.tensor([0.3])
    for objective in (X0(), V()):
        target = objective.target(x_0, x_t, *pure)
        assert objective.predict_x_0(x_t, target, *pure) == x_0


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_bad_arguments_are_named(weight):
    with pytest.raises(InputError, match=r"objective\.vlb_weight"):
        Eps(learned_variance=True, vlb_weight=weight)


# --- velocity and EDM


def test_velocity_is_well_posed_from_pure_noise_to_a_clean_image():
    x_0, eps, _, _ = draw()
    for alpha in (0.0, 1.0):
        alpha, sigma = (
            torch.full((200, 1, 1, 1), a, dtype=torch.float64) for a in (alpha, 1 - alpha)
        )
        again = Velocity().predict_x_0(alpha * x_0 + sigma * eps, eps - x_0, alpha, sigma)
        torch.testing.assert_close(again, x_0)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.2])
def test_edm_is_table_1_of_the_paper(sigma_data):
    """In its own variables: x = x_t / alpha, noise level s = sigma / alpha."""
    x_0, eps, alpha, sigma = draw()
    objective, t = EDM(sigma_data=sigma_data), torch.zeros(200)
    x, s = x_0 + sigma / alpha * eps, sigma / alpha
    total = s**2 + sigma_data**2
    c_skip, c_out = sigma_data**2 / total, s * sigma_data / total.sqrt()
    given, c_noise = objective.inputs(alpha * x, t, alpha, sigma)
    torch.testing.assert_close(given, x / total.sqrt())
    torch.testing.assert_close(c_noise, s.flatten().log() / 4)
    f = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = objective.predict_x_0(alpha * x, f, alpha, sigma)
    torch.testing.assert_close(found, c_skip * x + c_out * f)
    target = objective.target(x_0, eps, alpha, sigma)
    torch.testing.assert_close(target, (x_0 - c_skip * x) / c_out)
    scale = objective.error_scale((alpha / sigma) ** 2)
    torch.testing.assert_close(scale, 1 / c_out**2)


def test_edm_with_sigma_data_1_is_minus_v_and_the_input_x_t():
    x_0, eps, alpha, sigma = draw()
    x_t = alpha * x_0 + sigma * eps
    edm = EDM(sigma_data=1.0)
    torch.testing.assert_close(
        edm.target(x_0, eps, alpha, sigma), -V().target(x_0, eps, alpha, sigma)
    )
    torch.testing.assert_close(
        edm.predict_x_0(x_t, eps, alpha, sigma), V().predict_x_0(x_t, -eps, alpha, sigma)
    )
    torch.testing.assert_close(edm.inputs(x_t, torch.zeros(200), alpha, sigma)[0], x_t)
    snr = (alpha / sigma) ** 2
    torch.testing.assert_close(edm.error_scale(snr), V().error_scale(snr))


def test_edm_gives_the_network_an_input_of_variance_1():
    alpha, sigma = torch.rand(2, 50, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(2)
    x_0, eps = (
        0.5 * torch.randn(50, 1, 64, 64, generator=g),
        torch.randn(50, 1, 64, 64, generator=g),
    )
    given, _ = EDM(sigma_data=0.5).inputs(alpha * x_0 + sigma * eps, eps, alpha, sigma)
    assert given.std(dim=(1, 2, 3)).sub(1).abs().max() < 0.05


def test_edm_works_on_pure_noise():
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    given, c_noise = EDM(sigma_data=0.5).inputs(one, one, zero, one)
    assert given == 1
    assert c_noise.isfinite()
    assert EDM(sigma_data=0.5).predict_x_0(one, one, zero, one) == 0.5


def test_edm_measures_the_data_and_its_state_remembers():
    betas = linear(20, 1e-4, 0.02, rescale=False)

    def process():
        return GaussianDiffusion(betas=betas, objective=EDM(sigma_data="data"))

    diffusion, x = process(), torch.zeros(4, 1, 2, 2)
    t = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(InputError, match=r"objective.sigma_data=data"):
        training_loss(diffusion, lambda x, t: x, x, t)
    images = torch.randint(256, (100, 1, 4, 4), dtype=torch.uint8)
    diffusion.measure(images)
    std = (images.double() / 127.5 - 1).std().item()
    assert diffusion.objective.sigma_data == pytest.approx(std, rel=1e-6)
    other = process()
    other.load_state_dict(diffusion.state_dict())
    assert other.objective.sigma_data == diffusion.objective.sigma_data
    assert torch.equal(predict(other, x, x, t).x_0, predict(diffusion, x, x, t).x_0)
    assert not GaussianDiffusion(betas=betas, objective=EDM(sigma_data=0.5)).state_dict()


@pytest.mark.parametrize("sigma_data", [0, -1.0, float("inf"), "dta"])
def test_a_bad_sigma_data_is_refused(sigma_data):
    with pytest.raises(InputError, match=r"objective.sigma_data"):
        EDM(sigma_data=sigma_data)
