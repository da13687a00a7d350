"""The length of a run, and intervals of steps."""

import math

from ddpm.errors import InputError


def total_steps(max_steps: int | None, max_epochs: float | None, steps_per_epoch: float) -> int:
    """The smaller of `max_steps` and `max_epochs`, in steps; None is no limit."""
    epochs = None if max_epochs is None else math.ceil(max_epochs * steps_per_epoch)
    limits = [max_steps, epochs]
    return min(limit for limit in limits if limit is not None)


def rank_rows(batch_size: int, accumulate: int, rank: int, world_size: int) -> slice:
    """This rank's rows of the global batch.

    Raises:
        InputError: the batch cannot be divided evenly.
    """
    parts = world_size * accumulate
    if batch_size % parts:
        below = batch_size // parts * parts
        raise InputError(
            f"job.batch_size={batch_size}: not divisible by {world_size} devices x "
            f"job.accumulate_grad_batches={accumulate}; nearest: {below or parts}, {below + parts}."
        )
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)


def due(
    step: int,
    every: int | None,
    every_epochs: float | None = None,
    steps_per_epoch: float = math.inf,
) -> bool:
    """Whether step number `step` ends an interval of `every` steps, or of `every_epochs` epochs."""
    if every is not None and step % every == 0:
        return True
    if every_epochs is None:
        return False
    interval = every_epochs * steps_per_epoch
    return step // interval > (step - 1) // interval
