"""How far tensors may be from those of the CPU in float32."""

import torch
from torch import Tensor

from gpu_parts.part import CheckFailed, Figures

# Largest difference from the CPU's float32 result that passes, see `difference`. With TF32 off,
# float32 differs by the order of the sums alone, which takes 1e-6 to 1e-4 of a gradient; where this
# turns the sign of a ReLU's input, 1e-3. bfloat16 keeps 8 bits, and its errors of 0.4 % add up over
# the layers; those of an image are fewer.
TOLERANCE = {
    "train": {"32-true": 5e-3, "bf16-mixed": 0.2},
    "sample": {"32-true": 1e-3, "bf16-mixed": 0.03},
}
FLOOR = 0.01  # of the norm over all tensors, see `difference`

Tensors = dict[str, Tensor]


def compare(found: Tensors, expected: Tensors, allowed: float, figures: Figures) -> None:
    """Fill in the largest difference and where it is.

    Raises:
        CheckFailed: it is above the tolerance.
    """
    worst, largest = difference(found, expected)
    figures |= {"difference": largest, "at": worst, "allowed": allowed}
    if not largest <= allowed:
        raise CheckFailed(f"{worst} differs by {largest:.2g} of its norm, allowed is {allowed:g}")


def difference(found: Tensors, expected: Tensors) -> tuple[str, float]:
    """The tensor that differs most, and by how much: |found - expected| over |expected|.

    Some gradients are zero but for rounding (of a bias before a normalisation, say). Therefore 1 %
    of the norm over all tensors of the same part, "model" in "model.conv.bias", is added to the
    denominator. What is not a number counts as infinite.
    """
    floors = {part: FLOOR * norm for part, norm in norms_of_parts(expected).items()}
    differences = {
        name: float((found[name] - tensor).norm() / (tensor.norm() + floors[part_of(name)]))
        for name, tensor in expected.items()
    }
    differences = {k: v if v == v else float("inf") for k, v in differences.items()}
    worst = max(differences, key=differences.__getitem__)
    return worst, differences[worst]


def norms_of_parts(tensors: Tensors) -> dict[str, Tensor]:
    """The norm over all tensors of each part."""
    norms: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        norms.setdefault(part_of(name), []).append(tensor.norm())
    return {part: torch.stack(some).norm() for part, some in norms.items()}


def part_of(name: str) -> str:
    return name.partition(".")[0]
