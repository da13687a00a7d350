"""Runs on several processes."""

import pytest
import torch
from support.crash import TINY
from support.runs import metrics_of, state_of

FULL = "hardware.precision=32-true"


CPU = ["hardware.accelerator=cpu", FULL]


RUN = [*(word for word in TINY if not word.startswith("hardware")), "output_dir=run"]


SMALL = {
    "convnet": ["model=convnet"],
    "unet": ["model=unet", "model.widths=[8,16]", "model.groups=4", "model.num_blocks=1"],
    "resunet": [
        *("model=resunet", "model.widths=[8,8]", "model.groups=2", "model.num_res_blocks=1"),
        "model.dropout=0",
    ],
    "dit": ["model=dit", "model.depth=2", "model.width=16", "model.num_heads=2"],
    "jit": ["model=jit", "model.depth=2", "model.width=16", "model.num_heads=2"],
}


def assert_close(one, other, step=6, rtol=1e-4):
    """Two runs are equal but for rounding: losses, gradients, weights, averages, memory."""
    for row, its in zip(metrics_of(one), metrics_of(other), strict=True):
        assert row.keys() == its.keys()
        for key in row.keys() - {"train/images_per_sec", "train/memory_mb"}:
            assert its[key] == pytest.approx(row[key], rel=rtol), (row["step"], key)
    a, b = state_of(one, step), state_of(other, step)
    averages = a.get("averages", {}), b.get("averages", {})
    assert averages[0].keys() == averages[1].keys()
    pairs = [(a[part], b[part]) for part in ("model", "ema")]
    pairs += [(averages[0][length], averages[1][length]) for length in averages[0]]
    for weights, its in pairs:
        assert weights.keys() == its.keys()
        for name, weight in weights.items():
            assert type(its[name]) is torch.Tensor
            torch.testing.assert_close(its[name], weight, rtol=1e-3, atol=2e-5, msg=name)
    a, b = a["optimizer"], b["optimizer"]
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for number, entries in a["state"].items():
        for name, value in entries.items():
            torch.testing.assert_close(b["state"][number][name], value, rtol=1e-2, atol=1e-5)
