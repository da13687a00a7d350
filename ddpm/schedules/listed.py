"""Betas given one by one, for schedules that have no formula here."""

import torch
from torch import Tensor

from ddpm.errors import InputError
from ddpm.limits.parts import check_limits


def listed(T: int, betas: list[float] | None) -> Tensor:
    """The betas of a list, as pipelines of diffusers bring them (`trained_betas`): (T,), float64.

    Args:
        T: steps, the length of the list.
        betas: variances of the forward steps, each above 0 and below 1, the last at most 1.

    Raises:
        InputError: there are not T betas. The process checks their values.
    """
    check_limits("schedule", T=T)
    if betas is None:
        raise InputError("schedule.betas: must be set to a list of schedule.T numbers.")
    if len(betas) != T:
        raise InputError(f"schedule.T={T}: schedule.betas lists {len(betas)} numbers, not as many.")
    return torch.tensor(betas, dtype=torch.float64)
