"""Runs the GPU kernels of ddpm/models/ in Triton's interpreter, on the CPU, and prints their
relative errors, a JSON list. A process of its own: Triton decides when it is imported whether it
interprets."""

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F

from ddpm.models import add_bias_triton, group_norm_triton
from ddpm.models.gpu_kernels import Kernels, try_out
from ddpm.models.group_norm import ACTIVATIONS

# Shape, groups, activation, dtype, shape of the shift; SPLIT and TILE: an image in one program,
# and in several.
WHOLE, PARTS = (16_384, 4_096), (64, 64)
NORMS = [
    ((3, 16, 5, 7), 8, "none", torch.float32, (3, 16), WHOLE),
    ((1, 32, 2, 4), 32, "silu", torch.float32, None, WHOLE),
    ((2, 20, 3, 3), 4, "gelu", torch.float32, (2, 20), WHOLE),
    ((2, 12, 4, 4), 4, "silu", torch.bfloat16, (12,), WHOLE),
    ((1, 12, 4, 5), 4, "none", torch.bfloat16, None, PARTS),
    ((1, 20, 3, 3), 4, "silu", torch.float32, (20,), PARTS),
    ((1, 24, 3, 3), 8, "gelu", torch.float32, (1, 24), PARTS),
]
# Shape, dtype, dtype of the residual; ROWS, TILE and BLOCK.
BIASES = [
    ((2, 6, 3, 5), torch.float32, None, (64, 64, 4_096)),
    ((2, 6, 3, 5), torch.float32, torch.float32, (8, 16, 64)),
    ((3, 8, 4, 4), torch.bfloat16, torch.bfloat16, (8, 64, 64)),
    ((3, 5, 4, 4), torch.bfloat16, torch.float32, (8, 64, 64)),
]


def error(value, expected):
    return ((value.double() - expected).norm() / expected.norm()).item()


def compare(kernel, formula, inputs):
    """Errors of the result and of the gradients, against the formula in float64."""
    y = kernel(*inputs)
    assert y.is_contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    exact = [one.detach().double().requires_grad_() for one in inputs]
    z = formula(*exact)
    z.backward(gradient.double())
    pairs = zip(inputs, exact, strict=True)
    return y.dtype, [error(y, z.detach()), *(error(a.grad, b.grad) for a, b in pairs)]


def leaf(shape, dtype=torch.float32, offset=0.0):
    return (2 * torch.randn(shape) + offset).to(dtype).requires_grad_()


def norm_case(shape, groups, activation, dtype, shift, sizes):
    group_norm_triton.SPLIT, group_norm_triton.TILE = sizes
    inputs = [leaf(shape, dtype, 5.0), leaf(shape[1]), leaf(shape[1])]
    inputs += [] if shift is None else [leaf(shift)]

    def kernel(x, weight, bias, shift=None):
        return group_norm_triton.group_norm(x, groups, weight, bias, 1e-5, activation, shift)

    def formula(x, weight, bias, shift=None):
        x = x if shift is None else x + shift[..., None, None]
        return ACTIVATIONS[activation](F.group_norm(x, groups, weight, bias, 1e-5))

    found, errors = compare(kernel, formula, inputs)
    assert found == dtype
    return errors, group_norm_triton._plan(torch.empty(shape), groups)[1]


def bias_case(shape, dtype, plus, sizes):
    add_bias_triton.ROWS, add_bias_triton.TILE, add_bias_triton.BLOCK = sizes
    inputs = [leaf(shape, dtype), leaf(shape[1])]
    inputs += [] if plus is None else [leaf(shape, plus)]

    def formula(x, bias, plus=0.0):
        return x + bias[:, None, None] + plus

    found, errors = compare(add_bias_triton.add_bias, formula, inputs)
    assert found == torch.promote_types(dtype, plus or dtype)
    return errors, -(-shape[0] * shape[2] * shape[3] // sizes[0])


if __name__ == "__main__":
    torch.manual_seed(0)
    try_out(Kernels(group_norm_triton.group_norm, add_bias_triton.add_bias), torch.device("cpu"))
    cases = [("norm", case, norm_case(*case)) for case in NORMS]
    cases += [("bias", case, bias_case(*case)) for case in BIASES]
    print(
        json.dumps(
            [
                {
                    "kernel": kernel,
                    "case": str(case),
                    "float32": torch.bfloat16 not in case,
                    "programs": programs,
                    "errors": errors,
                }
                for kernel, case, (errors, programs) in cases
            ]
        )
    )
