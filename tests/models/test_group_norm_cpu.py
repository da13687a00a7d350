"""The kernel for CPUs of GroupNorm with its activation, against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ddpm.models import group_norm_cpu
from ddpm.models.convolution import Conv2d, conv_norm
from ddpm.models.cpu_kernels import chosen_for, cpu_kernels
from ddpm.models.group_norm import ACTIVATIONS, GroupNorm

pytestmark = pytest.mark.skipif(cpu_kernels() is None, reason="no C compiler")

GROUPS = 8


def relative_error(value, expected):
    return ((value.double() - expected).norm() / expected.norm()).item()


def tensors(shape, shift):
    """x, weight, bias and shift, of which x is far from zero: it has no mean of 0."""
    torch.manual_seed(0)
    channels = shape[1]
    made = [20 + 3 * torch.randn(shape), torch.randn(channels), torch.randn(channels)]
    if shift:
        made.append(torch.randn(channels if shift == "channels" else shape[:2]))
    return [tensor.requires_grad_() for tensor in made]


def expected_of(activation, x, weight, bias, shift=None):
    x = x if shift is None else x + shift[..., None, None]
    return ACTIVATIONS[activation](F.group_norm(x, GROUPS, weight, bias, 1e-5))


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(3, 48, 5, 7), (1, 64, 20, 33), (4, 16, 2, 2)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shift", [None, "channels", "images"])
def test_results_and_gradients_are_those_of_pytorch(shape, activation, shift, threads):
    given = tensors(shape, shift)
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    x, weight, bias, *more = given
    y = group_norm_cpu.group_norm(x, GROUPS, weight, bias, 1e-5, activation, *more)
    expected = expected_of(activation, *exact)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient.double())
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, expected) < 2e-6
    for tensor, other in zip(given, exact, strict=True):
        assert tensor.grad.shape == tensor.shape
        assert relative_error(tensor.grad, other.grad) < 2e-6


def test_threads_do_not_change_the_results():
    """One takes a whole image, three share it."""
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            given = tensors((2, 32, 20, 20), "images")
            x, weight, bias, shift = given
            y = group_norm_cpu.group_norm(x, GROUPS, weight, bias, 1e-5, "silu", shift)
            y.square().sum().backward()
            results.append([y, *(tensor.grad for tensor in given)])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_activations_are_exact_far_from_zero_too(activation):
    """A single group of two values is normalised to -1 and 1: weight and bias choose the input."""
    u = torch.linspace(-60, 60, 2**10)
    x = torch.cat([torch.zeros(1, 1024, 1, 1), torch.ones(1, 1024, 1, 1)], dim=3)
    weight = torch.zeros(1024, requires_grad=True)
    y = group_norm_cpu.group_norm(x, 1024, weight, u, 1e-5, activation)
    torch.testing.assert_close(y[0, :, 0, 0], ACTIVATIONS[activation](u), rtol=1e-6, atol=5e-7)
    y[..., 1].sum().backward()
    u = u.double().requires_grad_()
    ACTIVATIONS[activation](u).sum().backward()
    slope = weight.grad / x[0, :, 0, 1].sub(0.5).div((0.25 + 1e-5) ** 0.5)
    torch.testing.assert_close(slope.double(), u.grad, rtol=1e-5, atol=1e-6)


def test_a_first_pixel_unlike_all_others_does_not_spoil_the_variance():
    x = torch.randn(1, 16, 64, 64)
    x[..., 0, 0] = 1000
    one, zero = torch.ones(16), torch.zeros(16)
    y = group_norm_cpu.group_norm(x, 4, one, zero, 1e-5, "none")
    expected = F.group_norm(x.double(), 4, one.double(), zero.double(), 1e-5)
    assert relative_error(y, expected) < 1e-5


def test_parameters_may_be_columns_and_eps_a_whole_number():
    x, columns = torch.randn(2, 16, 8, 8), torch.randn(16, 2)
    y = group_norm_cpu.group_norm(x, 4, columns[:, 0], columns[:, 1], 1, "silu")
    expected = F.silu(F.group_norm(x, 4, *columns.T.contiguous(), 1.0))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_a_network_can_be_traced():
    norm, x = GroupNorm(4, 32, 1e-5, "silu"), torch.randn(16, 32, 16, 16)
    torch.testing.assert_close(torch.jit.trace(norm, x)(x), norm(x), rtol=1e-5, atol=1e-5)


def test_a_value_that_is_not_a_number_is_not_lost():
    x = torch.randn(2, 16, 8, 8)
    x[1, 3, 2, 2] = torch.nan
    y = group_norm_cpu.group_norm(x, 2, torch.ones(16), torch.zeros(16), 1e-5, "silu")
    assert y[1, :8].isnan().all()
    assert not y[0].isnan().any()
    assert not y[1, 8:].isnan().any()


def test_it_computes_large_images_in_float32_alone():
    x, weight = torch.empty(16, 32, 16, 16), torch.empty(32)

    def faster(x, weight=weight, activation="silu", shift=None):
        return group_norm_cpu.is_faster(x, weight, weight, shift, activation=activation)

    assert faster(x)
    assert faster(x, activation="none")
    assert not faster(x[:7])
    with chosen_for(8):
        assert faster(x[:7])
    assert not faster(torch.empty(64, 32, 7, 7))
    assert not faster(torch.empty(64, 32, 15, 15), activation="none")
    assert not faster(torch.empty(16, 40, 16, 16), torch.empty(40))
    assert not faster(x.double(), weight.double())
    assert not faster(x, weight.bfloat16())
    assert not faster(x, shift=weight.double())
    assert not faster(x, weight[:16])  # PyTorch has an error message for it
    with torch.autocast("cpu", torch.bfloat16):
        assert not faster(x)


def test_it_computes_on_tensors_without_content():
    with FakeTensorMode():
        x = torch.empty(16, 32, 16, 16, requires_grad=True)
        norm = GroupNorm(4, 32, 1e-5, "silu")
        y = norm(x, torch.empty(16, 32))
        y.sum().backward()
        assert y.shape == x.shape == x.grad.shape


def test_layers_compute_the_same_with_and_without(monkeypatch):
    torch.manual_seed(0)
    conv, norm = Conv2d(16, 32, 3, padding=1), GroupNorm(4, 32, 1e-5, "gelu")
    nn.init.normal_(norm.weight)
    x, shift = torch.randn(16, 16, 16, 16), torch.randn(16, 32)
    calls, inner = [], group_norm_cpu.group_norm
    monkeypatch.setattr(group_norm_cpu, "group_norm", lambda *a: calls.append(a) or inner(*a))
    y = conv_norm(conv, norm, x, shift)
    assert len(calls) == 1
    monkeypatch.setattr(group_norm_cpu, "is_faster", lambda *arguments, **options: False)
    torch.testing.assert_close(y, conv_norm(conv, norm, x, shift), rtol=1e-4, atol=1e-5)
    assert len(calls) == 1
