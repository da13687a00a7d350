import pytest
import torch
from torch import nn




def net(value):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


@pytest.mark.parametrize(("decay", "ramp"), [(0.5, 1.0), (0.9, 10.0)])
def test_the_average_has_its_closed_form(decay, ramp):
    model, expected = net(0.0), 0.0
    ema = EMA(model, decay, ramp)
    for n, value in enumerate([1.0, 2.0, -3.0, 5.0]):
        nn.init.constant_(model.weight, value)
        d = min(decay, (1 + n) / (ramp + n))
        expected = d * expected + (1 - d) * value
        ema.update(n)
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 5.0


def test_follows_the_model_through_moves_and_compile():
    model = net(0.0)
    ema = EMA(model, 0.5, 1.0)
    model.to(memory_format=torch.channels_last)
    model.compile(backend="eager")
    nn.init.constant_(model.weight, 4.0)
    ema.update(0)
    assert ema.model.weight.item() == 2.0
    assert list(ema.model.state_dict()) == ["weight"]


def test_buffers_are_copied():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, 0.9, 1.0)
    model(torch.randn(8, 2) + 3)
    ema.update(0)
    assert torch.equal(ema.model.running_mean, model.running_mean)


def test_the_average_takes_no_part_in_training():
    ema = EMA(net(1.0), 0.9, 1.0)
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert not ema.model.training
