"""Objectives: their targets, and x_0 from them."""

import pytest
import torch
from support.gaussian import OBJECTIVES

from ddpm.errors import InputError
from ddpm.objectives.eps import Eps
from ddpm.objectives.v import V
from ddpm.objectives.x_0 import X0


def draw():
    """x_0, eps, alpha and sigma at many noise levels, float64."""
    g = torch.Generator().manual_seed(0)
    x_0 = torch.rand(200, 1, 2, 2, generator=g, dtype=torch.float64) * 2 - 1
    eps = torch.randn(x_0.shape, generator=g, dtype=torch.float64)
    a = torch.linspace(4e-5, 0.9999, 200, dtype=torch.float64).reshape(-1, 1, 1, 1)
    return x_0, eps, a.sqrt(), (1 - a).sqrt()


@pytest.mark.parametrize("objective", OBJECTIVES.values())
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
