"""The rectified schedule: the straight path of flow matching, scaled to variance 1."""

import pytest
import torch

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.objectives.eps import Eps
from ddpm.objectives.velocity import Velocity
from ddpm.schedules.rectified import rectified


@pytest.mark.parametrize("end", [1.0, 0.999, 0.5])
@pytest.mark.parametrize("T", [1, 10, 1000])
def test_alpha_and_sigma_are_proportional_to_1_minus_u_and_u(T, end):
    diffusion = GaussianDiffusion(betas=rectified(T, end), objective=Velocity())
    for t in range(T):
        alpha, sigma = diffusion.alpha_sigma(t)
        assert sigma / (alpha + sigma) == pytest.approx(end * (t + 1) / T, rel=1e-9)
        assert alpha**2 + sigma**2 == pytest.approx(1, rel=1e-12)


def test_schedule_ends_in_pure_noise_only_if_end_is_1():
    assert rectified(1000, 1.0)[-1] == 1
    assert rectified(1000, 0.999)[-1] < 1
    assert GaussianDiffusion(betas=rectified(9, 1.0), objective=Velocity()).alpha_sigma(8) == (0, 1)


@pytest.mark.parametrize("end", [0.0, -1.0, 1.001, float("nan")])
def test_ends_out_of_range_are_refused(end):
    with pytest.raises(InputError, match=r"schedule.end"):
        rectified(10, end)


def test_eps_objective_is_refused_for_pure_noise():
    with pytest.raises(InputError, match=r"schedule.end=1.*objective=eps"):
        GaussianDiffusion(betas=rectified(10, 1.0), objective=Eps())
    GaussianDiffusion(betas=rectified(10, 0.999), objective=Eps())


def test_snr_falls_from_999_squared_to_0():
    diffusion = GaussianDiffusion(betas=rectified(1000, 1.0), objective=Velocity())
    torch.testing.assert_close(diffusion.snr[0].item(), 999.0**2, rtol=1e-5, atol=0)
    assert diffusion.snr[-1] == 0
