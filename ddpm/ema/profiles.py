"""Power-function averages as profiles over the steps, and combinations of them.

After t steps an average of exponent gamma weights the steps tau by the density
p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), 0 < tau <= t (Karras et al. 2024, arXiv:2312.02696,
equation 8). A combination of averages has the combined profile, so averages that were stored give,
nearly, those that were not (their section 3.2, appendix C).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LONGEST = 12**-0.5  # sigma_rel of the plain mean, gamma = 0
NEGLIGIBLE = 1e-10  # of an eigenvalue, relative to the largest


class Profile(NamedTuple):
    """The profile of an average: after `steps` steps, with this exponent."""

    steps: int
    gamma: float


def exponent(sigma_rel: float) -> float:
    """gamma of a length: the profile's standard deviation divided by t is
    sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)); found by bisection."""
    low, high = 0.0, 1 / sigma_rel
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if length(middle) > sigma_rel else (low, middle)
    return (low + high) / 2


def length(gamma: float) -> float:
    """sigma_rel of an exponent."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def products(rows: Sequence[Profile], columns: Sequence[Profile]) -> Tensor:
    """Integrals of the products of profiles, (rows, columns), float64."""
    t, gamma = (
        torch.tensor(part, dtype=torch.float64)[:, None] for part in zip(*rows, strict=True)
    )
    s, delta = (
        torch.tensor(part, dtype=torch.float64)[None] for part in zip(*columns, strict=True)
    )
    ratio = torch.where(t < s, (t / s) ** delta, (s / t) ** gamma)
    return (gamma + 1) * (delta + 1) / (gamma + delta + 1) * ratio / torch.maximum(t, s)


def combination(stored: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """Factors of stored averages whose sum is nearest to the wanted one, and how far the combined
    profile is from the wanted profile: the L2 norm of the difference, relative to the wanted.

    Least squares, as in the paper, with one condition more: the factors sum to 1, so that what all
    averages have in common is kept exactly. Directions with a negligible eigenvalue are left out:
    factors then stay small, and with them the rounding errors of the stored weights.

    Args:
        stored: at least two.
    """
    scale = products([wanted], [wanted])[0, 0]
    a, b = products(stored, stored) / scale, products(stored, [wanted])[:, 0] / scale
    last = len(stored) - 1  # the factor that follows from the others
    # x = e_last + directions z, directions = [I; -1]
    directions = torch.cat([torch.eye(last), -torch.ones(1, last)]).double()
    inner = directions.T @ a @ directions
    values, vectors = torch.linalg.eigh(inner)
    kept = values > NEGLIGIBLE * values.max()
    right = vectors.T @ (directions.T @ (b - a[:, last]))
    z = vectors[:, kept] @ (right[kept] / values[kept])
    x = directions @ z
    x[last] += 1
    error = 1 - 2 * x @ b + x @ a @ x
    return x.tolist(), math.sqrt(max(0.0, error.item()))
