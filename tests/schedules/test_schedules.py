import logging
import math

import pytest
import torch

from ddpm.errors import InputError
from ddpm.schedules.cosine import cosine
from ddpm.schedules.linear import linear
from ddpm.schedules.quadratic import quadratic
from ddpm.schedules.sigmoid import sigmoid

ENDS = {"beta_start": 1e-4, "beta_end": 0.02}
OPTIONS = {
    linear: ENDS | {"rescale": True},
    quadratic: ENDS | {"rescale": True},
    sigmoid: {"start": -3.0, "end": 3.0, "tau": 1.0, "max_beta": 0.999},
    cosine: {"s": 0.008, "max_beta": 0.999},
}


def betas_of(schedule, T=1000, *, zero_terminal_snr=False, **options):
    """Betas with the defaults of conf/, except some options."""
    return schedule(T, **OPTIONS[schedule] | options, zero_terminal_snr=zero_terminal_snr)


def alphas_cumprod_of(schedule, T=1000, **options):
    return (1 - betas_of(schedule, T, **options)).cumprod(0)


def first_below(alphas_cumprod, snr):
    return int((alphas_cumprod / (1 - alphas_cumprod) < snr).nonzero()[0])


def test_linear_values_of_the_paper():
    betas = betas_of(linear)
    assert betas[0] == pytest.approx(1e-4, abs=1e-12)
    assert betas[-1] == pytest.approx(0.02, abs=1e-12)
    assert betas.diff().std() < 1e-12
    alphas_cumprod = (1 - betas).cumprod(0)
    assert alphas_cumprod[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    posterior_variance = betas[1] * (1 - alphas_cumprod[0]) / (1 - alphas_cumprod[1])
    assert posterior_variance.item() == pytest.approx(5.4532e-5, rel=1e-4)
    assert [first_below(alphas_cumprod, snr) for snr in (5, 1)] == [130, 259]


@pytest.mark.parametrize(
    ("T", "left"), [(100, 2.0e-5), (200, 3.0e-5), (500, 3.8e-5), (1000, 4.0358e-5), (4000, 4.2e-5)]
)
def test_linear_ends_in_noise_for_any_T(T, left, caplog):
    assert alphas_cumprod_of(linear, T)[-1].item() == pytest.approx(left, rel=0.04)
    assert not caplog.records


@pytest.mark.parametrize(("T", "left"), [(100, 0.364), (200, 0.132), (300, 0.048)])
def test_unscaled_schedule_of_few_steps_leaves_signal_and_warns(T, left, caplog):
    assert alphas_cumprod_of(linear, T, rescale=False)[-1].item() == pytest.approx(left, abs=5e-4)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for word in ("schedule.rescale=false", f"schedule.T={T}", str(left)):
        assert word in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize(("T", "left"), [(500, 0.0064), (1000, 4.0358e-5), (4000, 2.7e-18)])
def test_unscaled_schedule_of_many_steps_does_not_warn(T, left, caplog):
    found = alphas_cumprod_of(linear, T, rescale=False)[-1].item()
    assert found == pytest.approx(left, rel=0.02)
    assert not caplog.records


def test_rescaling_has_no_effect_at_1000_steps_and_no_warning_with_zero_terminal_snr(caplog):
    for schedule in (linear, quadratic):
        assert torch.equal(betas_of(schedule, rescale=True), betas_of(schedule, rescale=False))
        betas_of(schedule, 100, rescale=False, zero_terminal_snr=True)
    assert not caplog.records


def test_quadratic_betas_are_linear_in_their_square_root(caplog):
    betas = betas_of(quadratic)
    assert (betas[0].item(), betas[-1].item()) == pytest.approx((1e-4, 0.02), rel=1e-12)
    assert betas.sqrt().diff().std() < 1e-12
    middle = ((0.01 + math.sqrt(0.02)) / 2) ** 2
    assert betas[499:501].mean().item() == pytest.approx(middle, rel=1e-4)
    assert (betas[1:-1] < betas_of(linear)[1:-1]).all()
    assert betas_of(quadratic, 250)[-1].item() == pytest.approx(0.08)
    assert betas_of(quadratic, 250, rescale=False)[-1].item() == pytest.approx(0.02)
    assert "schedule.rescale=false, schedule.T=250" in caplog.text


def test_cosine_values_of_improved_ddpm():
    betas = betas_of(cosine)
    assert betas[0].item() == pytest.approx(4.12842e-5, rel=1e-5)
    assert (betas == 0.999).sum() == 1
    assert betas[-2].item() == pytest.approx(0.75, abs=0.01)
    alphas_cumprod = (1 - betas).cumprod(0)
    assert alphas_cumprod[-1].item() == pytest.approx(2.4288e-9, rel=1e-3)
    assert [first_below(alphas_cumprod, snr) for snr in (5, 1)] == [261, 496]


def test_sigmoid_alphas_cumprod_has_the_closed_form():
    betas = betas_of(sigmoid)
    assert (betas == 0.999).sum() == 1
    alphas_cumprod = (1 - betas).cumprod(0)
    assert alphas_cumprod[-1].item() == pytest.approx(3.0e-7, rel=0.01)
    for t in (0, 99, 499, 800):  # the whole piece, by tanh: it is odd around its middle
        expected = 0.5 - 0.5 * math.tanh((6 * (t + 1) / 1000 - 3) / 2) / math.tanh(1.5)
        assert alphas_cumprod[t].item() == pytest.approx(expected, rel=1e-9)


def test_high_temperature_makes_the_sigmoid_linear():
    alphas_cumprod = alphas_cumprod_of(sigmoid, 10, tau=1000.0)[:-1]
    torch.testing.assert_close(
        alphas_cumprod, 1 - torch.arange(1, 10).double() / 10, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("T", [21, 100, 1000, 4000])
@pytest.mark.parametrize("schedule", OPTIONS)
def test_signal_falls_at_every_step_and_ends_in_noise(schedule, T):
    betas = betas_of(schedule, T)
    assert betas.shape == (T,)
    assert betas.dtype == torch.float64
    assert ((betas > 0) & (betas < 1)).all()
    alphas_cumprod = (1 - betas).cumprod(0)
    assert (alphas_cumprod.diff() < 0).all()
    assert alphas_cumprod[-1] < 1e-3
    if schedule is not sigmoid:
        assert (betas.diff() > 0).all()


@pytest.mark.parametrize("T", [2, 10, 100, 1000])
@pytest.mark.parametrize("schedule", OPTIONS)
def test_zero_terminal_snr_is_exactly_zero(schedule, T):
    options = {"rescale": False} if schedule in (linear, quadratic) else {}
    before = betas_of(schedule, T, **options)
    betas = betas_of(schedule, T, **options, zero_terminal_snr=True)
    assert betas.shape == (T,)
    assert betas.dtype == torch.float64
    assert betas[0] == before[0]
    assert betas[-1] == 1
    assert ((betas[:-1] > 0) & (betas[:-1] < 1)).all()
    alphas_cumprod = (1 - betas).cumprod(0)
    assert alphas_cumprod[-1] == 0
    # sqrt(alphas_cumprod) is a shifted and scaled copy of what it was
    old = (1 - before).cumprod(0).sqrt()
    expected = (old - old[-1]) / (old[0] - old[-1]) * old[0]
    torch.testing.assert_close(alphas_cumprod.sqrt(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: betas_of(linear, beta_start=0.02, beta_end=1e-4), "schedule.beta_start=0.02"),
        (lambda: betas_of(linear, 10), "schedule.T=10: linear .* 1000 / T < 1"),
        (lambda: betas_of(linear, 1), "schedule.T=1: linear"),
        (lambda: betas_of(linear, beta_end=1.0, rescale=False), "and beta_end < 1"),
        (lambda: betas_of(linear, beta_end=math.nan), "schedule.beta_end=nan"),
        (lambda: betas_of(linear, 0), "schedule.T=0"),
        (lambda: betas_of(quadratic, beta_start=-1e-4), "schedule.beta_start=-0.0001.*quadratic"),
        (lambda: betas_of(quadratic, 20), "schedule.T=20: quadratic"),
        (lambda: betas_of(cosine, s=-1.0), "schedule.s=-1"),
        (lambda: betas_of(cosine, s=math.nan), "schedule.s=nan"),
        (lambda: betas_of(cosine, max_beta=1.5), "schedule.max_beta=1.5"),
        (lambda: betas_of(cosine, 0), "schedule.T=0"),
        (lambda: betas_of(sigmoid, start=3.0, end=-3.0), "schedule.start=3.0, schedule.end=-3.0"),
        (lambda: betas_of(sigmoid, tau=0.0), "schedule.tau=0.0"),
        (lambda: betas_of(sigmoid, max_beta=0.0), "schedule.max_beta=0.0"),
        (lambda: betas_of(sigmoid, tau=1e-3), "schedule: .* so steep"),
        (lambda: betas_of(sigmoid, end=math.inf), "schedule: .* so steep"),
        (lambda: betas_of(sigmoid, 0), "schedule.T=0"),
        *(
            (
                lambda s=s, o=o: betas_of(s, 1, zero_terminal_snr=True, **o),
                "schedule.T=1: T must be at",
            )
            for s, o in [(cosine, {}), (sigmoid, {}), (linear, {"rescale": False})]
        ),
    ],
)
def test_bad_arguments_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
