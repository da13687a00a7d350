"""Winograd's algorithm against the convolution itself, in float64."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from ddpm.models import winograd
from ddpm.models.convolution import Conv2d
from ddpm.models.cpu_kernels import chosen_for, cpu_kernels
from ddpm.models.resunet import ResUNet


def relative_error(value, expected):
    return ((value.double() - expected).norm() / expected.norm()).item()


needs_compiler = pytest.mark.skipif(cpu_kernels() is None, reason="no C compiler")


@pytest.fixture(params=["compiled", "PyTorch"])
def transforms(request, monkeypatch):
    if request.param == "PyTorch":
        monkeypatch.setattr(winograd, "cpu_kernels", lambda: None)
        monkeypatch.setattr(winograd, "kernels_for", lambda x: None)
    elif cpu_kernels() is None:
        pytest.skip("no C compiler")
    return request.param


@pytest.mark.parametrize("chunk", [winograd.CHUNK, 1])  # all images at a time, and one
@pytest.mark.parametrize(
    "shape", [(2, 5, 7, 8, 12), (3, 16, 8, 4, 4), (1, 70, 66, 16, 16), (3, 32, 48, 12, 8)]
)
def test_results_and_gradients_are_those_of_a_convolution(shape, chunk, transforms, monkeypatch):
    monkeypatch.setattr(winograd, "CHUNK", chunk)
    torch.manual_seed(0)
    batch, inputs, outputs, height, width = shape
    x = torch.randn(batch, inputs, height, width, requires_grad=True)
    weight = torch.randn(outputs, inputs, 3, 3, requires_grad=True)
    bias = torch.randn(outputs, requires_grad=True)
    plus = torch.randn(batch, outputs, height, width, requires_grad=True)
    y = winograd.conv2d(x, weight, bias, plus)
    assert y.is_contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias, plus)]
    expected = F.conv2d(*exact[:3], padding=1) + exact[3]
    expected.backward(gradient.double())
    assert relative_error(y, expected) < 1e-5
    for tensor, other in zip((x, weight, bias, plus), exact, strict=True):
        assert relative_error(tensor.grad, other.grad) < 1e-5


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
def test_compiled_transforms_are_those_in_pytorch(threads, monkeypatch):
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    tensors = []
    try:
        for _ in range(2):
            torch.manual_seed(0)
            for transform in (winograd.INPUT, winograd.KERNEL, winograd.OUTPUT_TRANSPOSED):
                step = transform.step
                images = torch.randn(3, 3 * step, step, 32)
                tensors.append(winograd.to_tiles(transform, images).clone())
            for transform in (winograd.OUTPUT, winograd.KERNEL_TRANSPOSED):
                step = transform.step
                tiles, images = torch.randn(36, 6, 48), torch.empty(3, 2 * step, step, 48)
                adds = transform is winograd.OUTPUT
                bias, plus = torch.randn(48), torch.randn_like(images)
                more = (bias, plus) if adds else ()
                winograd.to_images(transform, tiles, images, *more)
                tensors.append(images)
            monkeypatch.setattr(winograd, "kernels_for", lambda x: None)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(tensors[:5], tensors[5:], rtol=1e-5, atol=1e-5)


def test_it_computes_on_tensors_without_content():
    """As the memory of a large network is counted."""
    with FakeTensorMode():
        x = torch.empty(8, 128, 16, 16, requires_grad=True)
        weight = torch.empty(128, 128, 3, 3, requires_grad=True)
        assert winograd.is_faster(x, weight, (1, 1), (1, 1))
        y = winograd.conv2d(x, weight, torch.empty(128))
        y.backward(torch.empty_like(y))
        assert y.shape == x.shape == x.grad.shape


def test_memory_that_is_kept_after_sampling_serves_training(transforms, monkeypatch):
    """A tensor of the inference mode could not be written outside of it."""
    monkeypatch.setattr(winograd, "BUFFERS", winograd._Buffers())
    x, weight = torch.randn(1, 16, 4, 4), torch.randn(16, 16, 3, 3, requires_grad=True)
    with torch.inference_mode():
        expected = winograd.conv2d(x, weight)
    y = winograd.conv2d(x, weight)
    y.sum().backward()
    assert torch.equal(y, expected)
    assert not any(buffer.is_inference() for buffer in winograd.BUFFERS.of.values())


def test_what_is_added_may_be_smaller_or_of_another_dtype(transforms):
    x, weight = torch.randn(2, 16, 4, 4), torch.randn(16, 16, 3, 3)
    for plus in (torch.randn(16, 1, 1), torch.randn(2, 16, 4, 4).double()):
        expected = F.conv2d(x, weight, padding=1) + plus
        y = winograd.conv2d(x, weight, None, plus)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("content", [True, False])
def test_the_memory_kept_for_large_batches_is_foreseen(content, monkeypatch):
    weight = torch.randn(64, 64, 3, 3)
    monkeypatch.setattr(winograd, "BUFFERS", winograd._Buffers())
    with contextlib.nullcontext() if content else FakeTensorMode(allow_non_fake_inputs=True):
        winograd.conv2d(torch.empty(2, 64, 16, 16), weight)
    kernels = 4 * 36 * 64 * 64
    assert winograd.kept_bytes(1) == sum(winograd.BUFFERS.sizes.values()) > kernels
    assert winograd.kept_bytes(1000) == kernels + 2 * 4 * winograd.CHUNK
    foreseen = winograd.kept_bytes(3)
    winograd.reset_sizes()
    assert winograd.kept_bytes(3) == 0
    winograd.conv2d(torch.empty(6, 64, 16, 16), weight)
    assert winograd.kept_bytes(1) == pytest.approx(foreseen, rel=0.01)


@needs_compiler
@pytest.mark.parametrize("channels", [(32, 64), (64, 32)])
def test_tensors_without_content_count_the_same_workspaces(channels, monkeypatch):
    inputs, outputs = channels
    sizes = []
    for mode in (contextlib.nullcontext(), FakeTensorMode(allow_non_fake_inputs=True)):
        monkeypatch.setattr(winograd, "BUFFERS", winograd._Buffers())
        weight = torch.randn(outputs, inputs, 3, 3, requires_grad=True)
        with mode:
            x = torch.empty(64, inputs, 16, 16, requires_grad=True)
            y = winograd.conv2d(x, weight)
            y.backward(torch.empty_like(y))
            assert (x.grad.shape, y.stride()) == (
                x.shape,
                (outputs * 256, 1, outputs * 16, outputs),
            )
        sizes.append(winograd.BUFFERS.sizes)
    assert sizes[0] == sizes[1]


@needs_compiler
def test_algorithms_are_chosen_for_the_batch_that_memory_is_measured_for():
    x, weight = torch.empty(2, 64, 16, 16), torch.empty(64, 64, 3, 3)
    assert not winograd.is_faster(x, weight, (1, 1), (1, 1))
    with chosen_for(8):
        assert winograd.is_faster(x, weight, (1, 1), (1, 1))
    assert not winograd.is_faster(x, weight, (1, 1), (1, 1))


@needs_compiler
def test_smaller_convolutions_need_a_compiler(monkeypatch):
    x, weight = torch.empty(8, 64, 16, 16), torch.empty(64, 64, 3, 3)
    assert winograd.is_faster(x, weight, (1, 1), (1, 1))
    assert not winograd.is_faster(x[:3], weight, (1, 1), (1, 1))
    assert not winograd.is_faster(x, weight[:40], (1, 1), (1, 1))
    assert winograd.is_faster(x, weight[:32], (1, 1), (1, 1))
    with torch.no_grad():
        assert winograd.is_faster(x, weight, (1, 1), (1, 1))
        assert not winograd.is_faster(x, weight[:32], (1, 1), (1, 1))
    monkeypatch.setattr(winograd, "cpu_kernels", lambda: None)
    assert not winograd.is_faster(x, weight, (1, 1), (1, 1))


def test_it_computes_large_convolutions_in_float32_alone(monkeypatch):
    monkeypatch.setattr(winograd, "cpu_kernels", lambda: None)
    wide, narrow = torch.empty(128, 128, 3, 3), torch.empty(128, 127, 3, 3)
    x = torch.empty(8, 128, 16, 16)
    assert winograd.is_faster(x, wide, (1, 1), (1, 1))
    assert not winograd.is_faster(x[:, :127], narrow, (1, 1), (1, 1))
    assert not winograd.is_faster(x, wide, (2, 2), (1, 1))
    assert not winograd.is_faster(x, wide, (1, 1), (0, 0))
    assert not winograd.is_faster(x[:7], wide, (1, 1), (1, 1))  # too few tiles
    assert not winograd.is_faster(x[:, :, :15], wide, (1, 1), (1, 1))
    assert not winograd.is_faster(x.double(), wide.double(), (1, 1), (1, 1))
    assert not winograd.is_faster(x, wide[:, :, :1, :1], (1, 1), (1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.is_faster(x, wide, (1, 1), (1, 1))


def test_a_layer_and_a_network_give_the_same_with_and_without(transforms, monkeypatch):
    torch.manual_seed(0)
    conv = Conv2d(8, 8, 3, padding=1)
    net = ResUNet(channels=1, image_size=8, widths=(8, 8), groups=4, attention_resolutions=())
    x, t = torch.randn(8, 8, 8, 8), torch.arange(8)

    def results():
        net.zero_grad()
        y = net(x[:, :1], t)
        y.square().sum().backward()
        gradients = [weight.grad for weight in net.parameters()]
        return [conv(x).detach(), conv(x, plus=x).detach(), y.detach(), *gradients]

    expected, calls = results(), []
    monkeypatch.setattr(winograd, "_is_large", lambda inputs, outputs, tiles: inputs > 1)
    inner = winograd.conv2d
    monkeypatch.setattr(winograd, "conv2d", lambda *args: calls.append(args) or inner(*args))
    torch.testing.assert_close(results(), expected, rtol=1e-4, atol=1e-5)
    assert len(calls) > 2
