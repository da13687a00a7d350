"""GroupNorm with its activation: its GPU kernels in Triton's interpreter, and when they run."""

import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddpm.models import group_norm
from ddpm.models.group_norm import GroupNorm, gpu_kernels, runs_own_kernels

SCRIPT = Path(__file__).parents[1] / "support" / "group_norm_kernels.py"
CUDA = torch.device("cuda")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="this build of PyTorch has no Triton"
)


@needs_triton
def test_kernels_agree_with_float64():
    """Result and gradients, of one program to an image and of many, in float32 and bfloat16."""
    out = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    cases = json.loads(out.stdout)
    assert {case["programs"] == 1 for case in cases} == {True, False}
    for case in cases:
        y, dx, *weights = case["errors"]
        assert max(y, dx) < (1e-6 if case["float32"] else 5e-3), case
        assert max(weights) < 1e-6, case


@pytest.mark.parametrize("activation", ["none", "silu", "gelu"])
def test_on_a_cpu_it_is_pytorchs(activation):
    x = torch.randn(2, 8, 4, 4)
    norm = GroupNorm(4, 8, 1e-5, activation)
    expected = F.group_norm(x, 4, norm.weight, norm.bias, 1e-5)
    expected = {"none": expected, "silu": F.silu(expected), "gelu": F.gelu(expected)}[activation]
    assert torch.equal(norm(x), expected)
    assert list(norm.state_dict()) == ["weight", "bias"]


@pytest.fixture
def fresh():
    gpu_kernels.cache_clear()
    yield
    gpu_kernels.cache_clear()


@needs_triton
def test_kernels_that_do_not_work_are_left_out_with_one_warning(fresh, monkeypatch, caplog):
    """Triton has no interpreter here, and no GPU: as on a machine where it is broken."""
    monkeypatch.setattr(group_norm, "has_gpu_compiler", lambda: True)
    with caplog.at_level(logging.WARNING):
        assert gpu_kernels(torch.device("cpu")) is None
        assert gpu_kernels(torch.device("cpu")) is None
    (record,) = caplog.records
    assert "PyTorch's slower kernels" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_without_a_compiler_there_are_no_kernels(fresh, monkeypatch, caplog):
    monkeypatch.setattr(group_norm, "has_gpu_compiler", lambda: False)
    assert gpu_kernels(CUDA) is None
    assert not caplog.records


def test_which_networks_run_on_the_kernels(monkeypatch):
    norm, other = nn.Sequential(GroupNorm(2, 4, 1e-5)), nn.Sequential(nn.GroupNorm(2, 4))
    monkeypatch.setattr(group_norm, "gpu_kernels", lambda device: group_norm)
    assert runs_own_kernels(norm, CUDA)
    assert not runs_own_kernels(norm, torch.device("cpu"))
    assert not runs_own_kernels(other, CUDA)
    monkeypatch.setattr(group_norm, "gpu_kernels", lambda device: None)
    assert not runs_own_kernels(norm, CUDA)
