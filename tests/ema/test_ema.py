"""The averages against their closed forms."""

import pytest
import torch
from torch import nn

from ddpm.ema.power import Power
from ddpm.ema.profiles import exponent
from ddpm.ema.several import Several
from ddpm.ema.simple import Simple

VALUES = torch.randn(300, generator=torch.Generator().manual_seed(0)).cumsum(0).tolist()


def net(value):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def follow(ema, model, values):
    for n, value in enumerate(values):
        nn.init.constant_(model.weight, value)
        ema.update(n)


@pytest.mark.parametrize(("decay", "ramp"), [(0.5, 1.0), (0.9, 10.0)])
def test_simple_average_has_the_closed_form(decay, ramp):
    model, expected = net(0.0), 0.0
    ema = Simple(model, decay=decay, ramp=ramp)
    for n, value in enumerate([1.0, 2.0, -3.0, 5.0]):
        nn.init.constant_(model.weight, value)
        d = min(decay, (1 + n) / (ramp + n))
        expected = d * expected + (1 - d) * value
        ema.update(n)
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 5.0


def test_each_of_several_averages_equals_a_simple_one_to_the_bit():
    model, decays = net(3.0), [0.99, 0.5, 0.0]
    several = Several(model, decay=0.1, ramp=10, decays=decays)
    assert several.model is several.models["0.99"]
    assert list(several.others) == ["0.5", "0.0"]
    singles = [Simple(model, decay=decay, ramp=10) for decay in decays]
    for n, value in enumerate(VALUES):
        nn.init.constant_(model.weight, value)
        for ema in (several, *singles):
            ema.update(n)
    for found, single in zip(several.models.values(), singles, strict=True):
        assert torch.equal(found.weight, single.model.weight)
    assert several.decay_at(1000, 1) == 0.5


@pytest.mark.parametrize("steps", [1, 2, 40, 300])
def test_power_average_equals_eq_8_of_karras_et_al(steps):
    """Equation 8 of Karras et al. 2024, with weights that stay as they are between two steps."""
    model = net(100.0)  # of which nothing stays
    ema = Power(model, decay=0, ramp=1, sigma_rel=[0.05, 0.1, 0.25], snapshots=2)
    follow(ema, model, VALUES[:steps])
    tau = torch.arange(steps + 1, dtype=torch.float64) / steps
    for name, average in ema.models.items():
        shares = (tau ** (exponent(float(name)) + 1)).diff()
        assert shares.sum().item() == pytest.approx(1)
        expected = shares @ torch.tensor(VALUES[:steps]).double()
        assert average.weight.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kind", ["simple", "several", "power"])
def test_averages_follow_a_model_that_is_moved_and_compiled(kind):
    model = net(0.0)
    ema = {
        "simple": lambda: Simple(model, decay=0.5, ramp=1),
        "several": lambda: Several(model, decay=0, ramp=1, decays=[0.5, 0.25]),
        "power": lambda: Power(model, decay=0, ramp=1, sigma_rel=[0.1, 0.2], snapshots=2),
    }[kind]()
    model.to(memory_format=torch.channels_last)
    model.compile(backend="eager")
    nn.init.constant_(model.weight, 4.0)
    ema.update(0)
    wanted = {"simple": [2.0], "several": [2.0, 3.0], "power": [4.0, 4.0]}[kind]
    assert [average.weight.item() for average in ema.models.values()] == wanted
    assert list(ema.model.state_dict()) == ["weight"]


def test_buffers_are_copied():
    model = nn.BatchNorm1d(2)
    ema = Several(model, decay=0, ramp=1, decays=[0.9, 0.5])
    model(torch.randn(8, 2) + 3)
    ema.update(0)
    for average in ema.models.values():
        assert torch.equal(average.running_mean, model.running_mean)


def test_averages_require_no_gradients_and_are_in_eval_mode():
    ema = Several(net(1.0), decay=0, ramp=1, decays=[0.9, 0.5])
    for average in ema.models.values():
        assert not any(p.requires_grad for p in average.parameters())
        assert not average.training
