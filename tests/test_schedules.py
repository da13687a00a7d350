import pytest
import torch

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.schedules.cosine import cosine
from ddpm.schedules.linear import linear


def test_linear_is_the_papers():
    betas = linear(1000, 1e-4, 0.02)
    assert betas.dtype == torch.float64
    assert betas[0] == pytest.approx(1e-4, abs=1e-12)
    assert betas[-1] == pytest.approx(0.02, abs=1e-12)
    alphas_cumprod = (1 - betas).cumprod(0)
    assert alphas_cumprod[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    diffusion = GaussianDiffusion(betas=betas)
    assert diffusion.posterior_variance[1].item() == pytest.approx(5.4532e-5, rel=1e-4)
    assert diffusion.posterior_variance[0] == 0


@pytest.mark.parametrize(("T", "left"), [(100, 2.0e-5), (200, 3.0e-5), (500, 3.8e-5)])
def test_linear_ends_in_noise_for_any_T(T, left):
    assert (1 - linear(T, 1e-4, 0.02)).prod().item() == pytest.approx(left, rel=0.04)


def test_cosine_is_improved_ddpms():
    betas = cosine(1000, 0.008, 0.999)
    assert betas[0].item() == pytest.approx(4.12842e-5, rel=1e-5)
    assert (betas == 0.999).sum() == 1
    assert betas[-2].item() == pytest.approx(0.75, abs=0.01)
    alphas_cumprod = (1 - betas).cumprod(0)
    assert alphas_cumprod[-1].item() == pytest.approx(2.4288e-9, rel=1e-3)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    assert int((snr < 5).nonzero()[0]) == 261


@pytest.mark.parametrize(
    "call",
    [
        lambda: linear(1000, 0.02, 1e-4),
        lambda: linear(10, 1e-4, 0.02),
        lambda: cosine(1000, -1.0, 0.999),
        lambda: cosine(1000, 0.008, 1.5),
    ],
)
def test_ends_that_make_no_schedule_are_refused(call):
    with pytest.raises(InputError, match="schedule"):
        call()
