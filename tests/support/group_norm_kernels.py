"""Runs the kernels of ddpm/models/group_norm_triton.py in Triton's interpreter, on the CPU, and
prints their relative errors, a JSON list. A process of its own: Triton decides when it is imported
whether it interprets."""

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F

from ddpm.models import group_norm_triton
from ddpm.models.group_norm import ACTIVATIONS

# Shape, groups, activation, dtype; SPLIT and TILE: an image in one program, and in several.
WHOLE, PARTS = (16_384, 4_096), (64, 64)
CASES = [
    ((3, 16, 5, 7), 8, "none", torch.float32, WHOLE),
    ((1, 32, 2, 4), 32, "silu", torch.float32, WHOLE),
    ((2, 20, 3, 3), 4, "gelu", torch.float32, WHOLE),
    ((2, 12, 4, 4), 4, "silu", torch.bfloat16, WHOLE),
    ((1, 12, 4, 5), 4, "none", torch.bfloat16, PARTS),
    ((1, 20, 3, 3), 4, "silu", torch.float32, PARTS),
    ((1, 24, 3, 3), 8, "gelu", torch.float32, PARTS),
]


def error(value, expected):
    return ((value.double() - expected).norm() / expected.norm()).item()


def errors(shape, groups, activation, dtype):
    """Of the result and the three gradients, against float64."""
    x = (2 * torch.randn(shape) + 5).to(dtype).requires_grad_()
    weight, bias = (torch.randn(shape[1], requires_grad=True) for _ in range(2))
    y = group_norm_triton.group_norm(x, groups, weight, bias, 1e-5, activation)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    exact = [one.detach().double().requires_grad_() for one in (x, weight, bias)]
    z = ACTIVATIONS[activation](F.group_norm(exact[0], groups, *exact[1:], 1e-5))
    z.backward(gradient.double())
    gradients = [error(a.grad, b.grad) for a, b in zip((x, weight, bias), exact, strict=True)]
    return [error(y, z.detach()), *gradients]


if __name__ == "__main__":
    torch.manual_seed(0)
    found = []
    for shape, groups, activation, dtype, sizes in CASES:
        group_norm_triton.SPLIT, group_norm_triton.TILE = sizes
        case = {
            "case": f"{shape} {groups} {activation} {dtype}",
            "programs": group_norm_triton._plan(torch.empty(shape), groups)["S"],
            "float32": dtype == torch.float32,
            "errors": errors(shape, groups, activation, dtype),
        }
        found.append(case)
    print(json.dumps(found))
