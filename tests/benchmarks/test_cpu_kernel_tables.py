"""benchmarks/cpu_kernels.py: its tables, and which kernels its steps take."""

import re
import sys
from unittest.mock import patch

import pytest
import torch
from support.base import ROOT

from ddpm.models import group_norm_cpu, winograd
from ddpm.models.cpu_kernels import cpu_kernels
from ddpm.models.group_norm import GroupNorm

sys.path.append(str(ROOT / "benchmarks"))

import cpu_kernels as benchmark

RATIO = re.compile(r"\d+\.\d\dx \(\d+\.\d\d to \d+\.\d\d\)")

needs_compiler = pytest.mark.skipif(cpu_kernels() is None, reason="needs Linux and a C compiler")


@needs_compiler
def test_tables_of_layers_and_steps(monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(benchmark, "CONVOLUTIONS", [(32, 32, 8, 2)])
    monkeypatch.setattr(benchmark, "GROUP_NORMS", [(32, 8, 8, 2)])
    words = ("model=resunet", "data=digits", "model.widths=[16,16]", "model.groups=2")
    monkeypatch.setattr(benchmark, "STEPS", {words: 2})
    try:
        benchmark.main(["--rounds", "1", "--seconds", "0.01"])
    finally:
        torch.set_num_threads(threads)
    rows = [line for line in capsys.readouterr().out.splitlines() if RATIO.search(line)]
    names = [row.split("|")[1].strip() for row in rows]
    assert names[:2] == ["3x3, 32 to 32, 8x8, 2", "GroupNorm, 32, 8x8, 2"]
    assert names[2:] == [f"{' '.join(words)}, 2"] * 2
    assert [len(RATIO.findall(row)) for row in rows] == [2, 2, 3, 3]


@needs_compiler
@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize("group_norm", [True, False])
def test_steps_take_the_kernels_that_are_allowed(convolutions, group_norm):
    x = torch.randn(64, 32, 16, 16)
    layer = GroupNorm(8, 32, eps=1e-5, activation="silu")
    weight = torch.randn(32, 32, 3, 3)
    real = patch.object(group_norm_cpu, "group_norm", wraps=group_norm_cpu.group_norm)
    with real as called, benchmark.kernels(convolutions, group_norm):
        layer(x)
        assert winograd.is_faster(x, weight, (1, 1), (1, 1)) == convolutions
    assert called.called == group_norm
