"""The memory that training is expected to take on a device, and job.accumulate_grad_batches=auto.

The memory that the network keeps for the backward pass is measured: it runs forward and backward
with two images and with three, every tensor is counted, and the sum after each operation is
extrapolated linearly to the images of a step. Large networks are measured with fake tensors, which
have a size and no content, and with all images at once if their number is known. A compiled network
takes less than is expected here.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from ddpm.errors import InputError, one_line
from ddpm.models import winograd
from ddpm.runner.distributed import fsdp
from ddpm.runner.distributed.fabric import reset_peak_memory
from ddpm.runner.distributed.reduce import all_reduce
from ddpm.runner.execution import eager
from ddpm.runner.execution.run import Run
from ddpm.training import memory
from ddpm.training.memory import Ledger
from ddpm.training.memory_probe import MEASURED, MemoryProbe, Trace

MakeOptimizer = Callable[..., torch.optim.Optimizer]

SPARE = 0.05  # share of the expected memory to leave free, for memory that is not counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryEstimate:
    """Expected bytes of training on one device. `accumulate` is the number of micro-batches.

    Args:
        kept: weights, their average and the optimizer's state, all the time.
        held: the part of `kept` that is allocated before the first step.
        gradients: of all weights.
        update: temporary memory of the optimizer's step.
        image, noise: of each image of this device's share, and of the global batch.
        batch, share: images of a step, on all devices and on this one.
        traces: of a forward and backward pass, by number of images.
        preview: of a forward pass that draws or evaluates `drawn` images; 0 if it cannot be the
            peak.
        workspaces: of libraries and kernels.
    """

    kept: int
    held: int
    gradients: int
    update: int
    image: int
    noise: int
    batch: int
    share: int
    traces: dict[int, Trace]
    preview: int = 0
    drawn: int = 0
    workspaces: int = 0

    def total(self, accumulate: int) -> int:
        """Peak memory."""
        return max(self.training(accumulate), self.kept + self.workspaces + self.preview)

    def training(self, accumulate: int) -> int:
        """Peak memory without previews, which a run can do without."""
        images = self.share // accumulate
        live = extrapolate({n: trace.live for n, trace in self.traces.items()}, images)
        if accumulate == 1:
            gradients = {n: trace.gradients for n, trace in self.traces.items()}
            passes = max(map(sum, zip(live, extrapolate(gradients, images), strict=True)))
        else:  # from the second micro-batch on, all gradients are allocated
            passes = self.gradients + max(live)
        step = max(passes, self.gradients + self.update)
        step += self.share * self.image + self.batch * self.noise
        return self.kept + self.workspaces + step

    def text(self, accumulate: int) -> str:
        """The estimate in words."""
        total, images = self.total(accumulate), self.share // accumulate
        at_once = f"{images} images" if images != 1 else "1 image"
        more = f" at a time, {accumulate} times a step" if accumulate > 1 else ""
        if total > self.training(accumulate):
            at_once, more = f"{self.drawn} images", " that are drawn or evaluated at a time"
        rest = memory.text(total - self.kept)
        return (
            f"about {memory.text(total)}: {memory.text(self.kept)} for weights, their average and "
            f"the optimizer, {rest} for {at_once}{more}"
        )


def extrapolate(known: dict[int, list[int]], images: int) -> list[int]:
    """Bytes after each operation with `images` images, linear in what is known of two numbers."""
    if images in known:
        return known[images]
    (n, fewer), (m, more) = known.items()
    if len(fewer) != len(more):  # different operations: use the peaks alone
        fewer, more = [max(fewer, default=0)], [max(more, default=0)]
    pairs = zip(fewer, more, strict=True)
    return [max(0, a + (b - a) * (images - n) // (m - n)) for a, b in pairs]


def estimate_memory(
    probe: MemoryProbe,
    make_optimizer: MakeOptimizer,
    optimizer: torch.optim.Optimizer,
    *,
    batch: int,
    share: int,
    accumulate: int | None,
    eval_batch: int,
    averages: int = 1,
) -> MemoryEstimate:
    """Expected memory of training on this device.

    Args:
        make_optimizer: makes an optimizer from parameter groups.
        optimizer: the run's optimizer.
        batch, share: images of a step, on all devices and on this one.
        accumulate: number of micro-batches; None: not chosen yet.
        eval_batch: images of a forward pass in a preview or evaluation.
        averages: number of averages of the weights.
    """
    pixels = probe.shape[0] * probe.shape[1] * probe.shape[2]
    at_once = 1 if accumulate is None else share // accumulate
    # With fake tensors any number of images takes the same time.
    numbers = MEASURED if accumulate is None or not probe.fake else (at_once,)
    winograd.reset_sizes()
    traces = {number: probe.trace(number, at_once) for number in numbers}
    growth = (share if accumulate is None else at_once) / max(numbers)
    workspaces = memory.workspaces(probe.fabric.device, growth)
    return MemoryEstimate(
        **_by_weights(probe, make_optimizer, optimizer, averages),
        image=pixels * (1 + 4),  # as bytes and as float32
        noise=pixels * 4,  # every device draws the noise of the whole batch
        batch=batch,
        share=share,
        traces=traces,
        # With fewer images than training takes at once, a preview takes less.
        preview=_preview(probe, eval_batch) if eval_batch > at_once else 0,
        drawn=eval_batch,
        workspaces=workspaces,
    )


def _by_weights(
    probe: MemoryProbe,
    make_optimizer: MakeOptimizer,
    optimizer: torch.optim.Optimizer,
    averages: int,
) -> dict[str, int]:
    """The bytes that grow with the weights and not with the images: `kept`, `held`, `gradients`
    and `update` of a `MemoryEstimate`."""
    fabric, weights = probe.fabric, probe.weight_bytes
    state, update = (round(ratio * weights) for ratio in _optimizer_ratios(make_optimizer))
    copies = (1 + averages) * weights
    held = copies + sum(_state_bytes(optimizer))
    kept, gradients = copies + state, weights
    if probe.sharded:
        ranks = fabric.world_size
        held, kept, gradients, update = (n // ranks for n in (held, kept, gradients, update))
        kept += 2 * probe.largest_block  # unsharded weights of the running block and the next one
    elif isinstance(fabric.strategy, DDPStrategy):
        kept += weights  # communication buffers of the gradients
    return {"kept": kept, "held": held, "gradients": gradients, "update": update}


def _preview(probe: MemoryProbe, images: int) -> int:
    """Bytes of a forward pass that draws or evaluates so many images."""
    numbers = (images,) if probe.fake else MEASURED
    (peak,) = extrapolate({n: [probe.forward(n, images)] for n in numbers}, images)
    return peak


def _optimizer_ratios(make: MakeOptimizer) -> tuple[float, float]:
    """Bytes of an optimizer per byte of weights: of its state, and temporary ones of its step."""
    weight = nn.Parameter(torch.zeros(64, 64))
    optimizer = make([{"params": [weight]}])
    weight.grad = torch.zeros_like(weight)
    eager.take_step(optimizer)  # creates the state
    with Ledger() as ledger:
        eager.take_step(optimizer)
    return sum(_state_bytes(optimizer)) / weight.nbytes, max(0, ledger.peak) / weight.nbytes


def _state_bytes(optimizer: torch.optim.Optimizer) -> Iterator[int]:
    """Bytes of each tensor of an optimizer's state, without scalars."""
    for entries in optimizer.state.values():
        for value in entries.values():
            if isinstance(value, Tensor) and value.dim() > 0:
                yield (value.to_local() if fsdp.is_sharded(value) else value).nbytes  # type: ignore[attr-defined]


def free_bytes(fabric: Fabric) -> int | None:
    """Bytes that this process can still allocate, or None if unknown; the processes of a machine
    share its memory equally."""
    free = memory.available(fabric.device)
    if free is None or fabric.device.type != "cpu":
        return free
    return free * getattr(fabric.strategy, "num_nodes", 1) // fabric.world_size


def warn_if_too_large(estimate: MemoryEstimate, accumulate: int, fabric: Fabric) -> None:
    """Log a warning if the expected memory exceeds the free memory."""
    free = free_bytes(fabric)
    if free is not None and estimate.total(accumulate) - estimate.held > free:
        logger.warning(
            "job.batch_size=%d: about %s of memory are needed and %s are free. A smaller "
            "job.batch_size, job.recompute=true or job.accumulate_grad_batches=auto needs less.",
            estimate.batch,
            memory.text(estimate.total(accumulate)),
            memory.text(free + estimate.held),
        )


def splits(share: int) -> list[int]:
    """The numbers of equal micro-batches that `share` images can be split into, in rising order."""
    return [n for n in range(1, share + 1) if share % n == 0]


def choose_accumulation(
    probe: MemoryProbe, estimate: MemoryEstimate, *, tries: bool | None = None
) -> int:
    """The smallest number of micro-batches that fits on all devices.

    Args:
        tries: find out by running forward and backward; otherwise compare the estimate with the
            free memory. None: on GPUs, unless the network is sharded.

    Raises:
        InputError: not even one image at a time fits.
    """
    if tries is None:
        tries = probe.fabric.device.type == "cuda" and not probe.sharded
    free, share = free_bytes(probe.fabric), estimate.share
    fitting = (n for n in splits(share) if _fits(probe, estimate, n, free, tries))
    smallest = next(fitting, share + 1)
    chosen = torch.tensor(float(smallest), device=probe.fabric.device)
    chosen = all_reduce(probe.fabric, chosen, "max")
    if chosen > share:
        raise InputError(
            f"job.accumulate_grad_batches=auto: not even one image of {probe.shape[-1]} pixels at "
            f"a time fits: that takes about {memory.text(estimate.training(share))}, and "
            f"{memory.text((free or 0) + estimate.held)} are free. job.recompute=true or a smaller "
            "network needs less."
        )
    return round(chosen.item())


def _fits(
    probe: MemoryProbe, estimate: MemoryEstimate, accumulate: int, free: int | None, tries: bool
) -> bool:
    if tries:
        others = estimate.kept - estimate.held + estimate.workspaces
        others += estimate.share * estimate.image
        others += estimate.batch * estimate.noise
        others += round(SPARE * estimate.training(accumulate))
        return probe.fits(estimate.share // accumulate, accumulate, others)
    return free is None or (estimate.training(accumulate) - estimate.held) * (1 + SPARE) <= free


def plan_memory(
    run: Run,
    probe: MemoryProbe,
    make_optimizer: MakeOptimizer,
    optimizer: torch.optim.Optimizer,
    *,
    share: int,
    accumulate: int | None,
    **sizes: int,
) -> tuple[MemoryEstimate | None, int]:
    """The memory that training is expected to take, and the number of micro-batches.

    For `accumulate` None (auto) the number is chosen and recorded; a resumed run keeps it.

    Args:
        sizes: the other arguments of `estimate_memory`.

    Raises:
        InputError: nothing fits, or auto on a network that cannot be measured.
    """
    try:
        estimate = estimate_memory(
            probe, make_optimizer, optimizer, share=share, accumulate=accumulate, **sizes
        )
    except Exception as error:  # a user's own network may not support it
        reason = one_line(error)
        if accumulate is None:
            raise InputError(
                f"job.accumulate_grad_batches=auto: the memory of this network cannot be measured "
                f"({reason}). Set a number instead."
            ) from error
        logger.warning("The memory that training takes cannot be estimated: %s", reason)
        return None, accumulate
    if accumulate is None:
        accumulate = run.recorded_choice("accumulate")
        if accumulate not in splits(share):
            accumulate = choose_accumulation(probe, estimate)
        run.record_choice(accumulate=accumulate)
    reset_peak_memory(probe.fabric.device)
    return estimate, accumulate
