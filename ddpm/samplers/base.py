"""What the samplers share: which of the T steps they take."""

import torch

from ddpm.errors import InputError


def timesteps(T: int, steps: int) -> list[tuple[int, int]]:
    """Pairs (t, s): from which step to which, `steps` of them; s = -1 at the end stands for x_0.

    The t are evenly spaced over 0..T-1; the first is T - 1, and the last 0 if there are two.

    Raises:
        InputError: there are not so many steps.
    """
    if steps > T:
        raise InputError(f"sampler.steps={steps}: must be at most schedule.T={T}.")
    ts = torch.linspace(T - 1, 0, steps).round().long().tolist()
    return list(zip(ts, [*ts[1:], -1], strict=True))
