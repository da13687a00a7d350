"""GroupNorm with its activation, and the networks that run on its GPU kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddpm.models import group_norm
from ddpm.models.group_norm import GroupNorm, runs_own_kernels

CUDA = torch.device("cuda")


@pytest.mark.parametrize("activation", ["none", "silu", "gelu"])
def test_group_norm_on_a_cpu_equals_pytorch(activation):
    x = torch.randn(2, 8, 4, 4)
    norm = GroupNorm(4, 8, 1e-5, activation)
    expected = F.group_norm(x, 4, norm.weight, norm.bias, 1e-5)
    expected = {"none": expected, "silu": F.silu(expected), "gelu": F.gelu(expected)}[activation]
    assert torch.equal(norm(x), expected)
    assert list(norm.state_dict()) == ["weight", "bias"]
    shift = torch.randn(2, 8)
    assert torch.equal(norm(x, shift), norm(x + shift[:, :, None, None]))


def test_which_networks_run_on_the_kernels(monkeypatch):
    norm, other = nn.Sequential(GroupNorm(2, 4, 1e-5)), nn.Sequential(nn.GroupNorm(2, 4))
    monkeypatch.setattr(group_norm, "gpu_kernels", lambda device: group_norm)
    assert runs_own_kernels(norm, CUDA)
    assert not runs_own_kernels(norm, torch.device("cpu"))
    assert not runs_own_kernels(other, CUDA)
    monkeypatch.setattr(group_norm, "gpu_kernels", lambda device: None)
    assert not runs_own_kernels(norm, CUDA)
