"""GPU kernels in Triton's interpreter, and when they run."""

import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddpm.models import gpu_kernels
from ddpm.models.convolution import Conv2d, conv_norm
from ddpm.models.group_norm import GroupNorm

SCRIPT = Path(__file__).parents[1] / "support" / "gpu_kernels.py"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="this build of PyTorch has no Triton"
)


@pytest.mark.slow
@needs_triton
def test_kernels_agree_with_float64():
    """Results and gradients, of one program and of many, in float32 and bfloat16."""
    out = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    cases = json.loads(out.stdout)
    kinds = {(case["kernel"], case["programs"] == 1) for case in cases}
    assert kinds == {("norm", True), ("norm", False), ("bias", True), ("bias", False)}
    for case in cases:
        y, dx, *others = case["errors"]  # of images; then of gradients of channels
        assert max(y, dx) < (1e-6 if case["float32"] else 5e-3), case
        assert max(others) < 1e-6, case


@pytest.fixture
def fresh():
    gpu_kernels.gpu_kernels.cache_clear()
    yield
    gpu_kernels.gpu_kernels.cache_clear()


@needs_triton
def test_kernels_that_do_not_work_are_left_out_with_one_warning(fresh, monkeypatch, caplog):
    """Triton has no interpreter here, and no GPU: as on a machine where it is broken."""
    monkeypatch.setattr(gpu_kernels, "has_gpu_compiler", lambda: True)
    with caplog.at_level(logging.WARNING):
        assert gpu_kernels.gpu_kernels(torch.device("cpu")) is None
        assert gpu_kernels.gpu_kernels(torch.device("cpu")) is None
    (record,) = caplog.records
    assert "PyTorch's slower kernels" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_without_a_compiler_there_are_no_kernels(fresh, monkeypatch, caplog):
    monkeypatch.setattr(gpu_kernels, "has_gpu_compiler", lambda: False)
    assert gpu_kernels.gpu_kernels(torch.device("cuda")) is None
    assert not caplog.records


def test_kernels_run_only_on_gpus():
    assert gpu_kernels.kernels_for(torch.zeros(1)) is None


def test_convolutions_add_residual_and_shift():
    conv, norm, x = (
        Conv2d(3, 8, 3, padding=1),
        GroupNorm(4, 8, 1e-5, "silu"),
        torch.randn(2, 3, 4, 4),
    )
    plus, shift = torch.randn(2, 8, 4, 4), torch.randn(2, 8)
    plain = torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    assert torch.equal(conv(x), plain)
    assert torch.equal(conv(x, plus), plain + plus)
    assert torch.equal(conv_norm(conv, norm, x), norm(plain))
    assert torch.equal(conv_norm(conv, norm, x, shift), norm(plain + shift[:, :, None, None]))


def test_with_kernels_the_bias_is_added_by_them(monkeypatch):
    """A stand-in for the kernels, by PyTorch: the same result and gradients."""

    def group_norm(x, groups, weight, bias, eps, activation, shift=None):
        x = x if shift is None else x + shift[..., None, None]
        return torch.nn.functional.silu(
            torch.nn.functional.group_norm(x, groups, weight, bias, eps)
        )

    def add_bias(x, bias, plus=None):
        return x + bias[:, None, None] + (0 if plus is None else plus)

    torch.manual_seed(0)
    conv, norm = Conv2d(3, 8, 3, padding=1).double(), GroupNorm(4, 8, 1e-5, "silu").double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    plus, shift = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 8).double()

    def results():
        conv.bias.grad = None
        found = [conv(x), conv(x, plus), conv_norm(conv, norm, x), conv_norm(conv, norm, x, shift)]
        torch.cat(found).square().sum().backward()
        return [*found, conv.bias.grad]

    expected = results()
    kernels = gpu_kernels.Kernels(group_norm, add_bias)
    for module in ("convolution", "group_norm"):
        monkeypatch.setattr(f"ddpm.models.{module}.kernels_for", lambda x: kernels)
    torch.testing.assert_close(results(), expected)
