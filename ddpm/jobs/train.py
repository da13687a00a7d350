"""Algorithm 1 of Ho et al. 2020, and what a run of days needs around it."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ddpm.console import Progress
from ddpm.data.base import ImageData
from ddpm.diffusion import GaussianDiffusion
from ddpm.ema import EMA
from ddpm.errors import InputError
from ddpm.jobs.meter import Meter
from ddpm.jobs.preview import preview
from ddpm.jobs.run import Run
from ddpm.jobs.step import LearningRate, Step
from ddpm.pipeline import Pipeline, Sampler
from ddpm.randomness import Order, StepNoise
from ddpm.signals import GracefulStop


def train(
    *,
    run: Run,
    fabric: Fabric,
    model: nn.Module,
    diffusion: GaussianDiffusion,
    data: ImageData,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    sampler: Sampler,
    seed: int,
    max_steps: int | None,
    max_epochs: float | None,
    batch_size: int,
    accumulate: int,
    warmup_steps: int,
    decay_steps: int | None,
    clip_grad_norm: float | None,
    ema_decay: float,
    ema_ramp: float,
    compile: bool,
    num_workers: int,
    log_every: int,
    save_every: int | None,
    keep_checkpoints: int,
    sample_every: int | None,
    sample_every_epochs: float | None,
    num_samples: int,
) -> None:
    """Train a network to predict noise. conf/job/train.yaml says what each knob means."""
    data.prepare()
    steps_per_epoch = len(data) / batch_size
    total = total_steps(max_steps, max_epochs, steps_per_epoch)
    rows = rank_rows(batch_size, accumulate, fabric.global_rank, fabric.world_size)
    shape = (data.channels, data.image_size, data.image_size)

    net = model.to(fabric.device, memory_format=torch.channels_last)
    diffusion = diffusion.to(fabric.device)
    ema = EMA(net, ema_decay, ema_ramp)
    inner = optimizer(net.parameters())
    lr = LearningRate(inner.defaults["lr"], warmup_steps, decay_steps)
    start = run.restore(net, ema.model, inner)
    if start >= total:
        run.say(f"steps    all {total} are done; a larger job.max_steps goes on")
        return
    if compile:  # in place, so that names in checkpoints stay clean
        net.compile()
        ema.model.compile()
    model, optimizer = fabric.setup(net, inner)
    noise = StepNoise(seed, batch_size, shape, diffusion.T, fabric.device)
    train_step = Step(
        fabric, model, optimizer, diffusion, ema, noise, rows, data.flip, accumulate,
        clip_grad_norm, lr,
    )  # fmt: skip
    pipeline = Pipeline(
        ema.model, diffusion, sampler, shape, device=fabric.device, autocast=fabric.autocast
    )
    order = Order(len(data), seed, batch_size, rows, start, total)
    meter = Meter(batch_size, steps_per_epoch)

    with (
        run.begin(),
        GracefulStop() as stop,
        Progress(total, start, enabled=run.leads) as progress,
    ):
        describe(run, net, data, batch_size, start, total)
        for n, images in enumerate(load(data, order, fabric.device, num_workers), start=start):
            loss, grad_norm = train_step(n, images)
            meter.add(loss, grad_norm)
            step = n + 1
            stopping = step < total and agreed(fabric, stop.received is not None, step)
            progress.advance()
            if step % log_every == 0 or step == total or stopping:
                figures = meter.read(fabric, step, lr(n))
                run.log(step, figures)
                progress.show(step, meter.text(figures))
                check_finite(figures["train/loss"], step, lr)
            with meter.paused():
                if step == total or stopping or due(step, save_every):
                    check_finite(float(loss), step, lr)  # no broken weights over good ones
                    run.save(step, net, ema.model, inner, keep_checkpoints)
                if step == total or (
                    not stopping and due(step, sample_every, sample_every_epochs, steps_per_epoch)
                ):
                    run.log_grid(step, preview(fabric, pipeline, num_samples))
            if stopping:
                run.end = "preempted"
                run.say(f"stopped  asked to by a signal, saved after step {step}")
                break


def describe(
    run: Run, net: nn.Module, data: ImageData, batch_size: int, start: int, total: int
) -> None:
    """What is about to be trained on what, and for how long."""
    parameters = sum(p.numel() for p in net.parameters())
    size = f"{data.channels}x{data.image_size}x{data.image_size}"
    epoch = f"{len(data) / batch_size:.1f} steps an epoch"
    run.say(f"network  {parameters:,} parameters")
    run.say(f"data     {len(data):,} images of {size}, {epoch}")
    run.say(f"steps    {f'{start} to ' if start else ''}{total}, batch {batch_size}")


def check_finite(loss: float, step: int, lr: LearningRate) -> None:
    """Stop a run that has broken.

    Raises:
        InputError: the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise InputError(
            f"the loss is {loss} at step {step}: a lower optimizer.lr (now {lr.peak}) or a "
            f"longer job.warmup_steps (now {lr.warmup_steps}) helps."
        )


def load(data: ImageData, order: Order, device: torch.device, num_workers: int) -> Iterator[Tensor]:
    """This rank's images of each batch on the device: uint8 (B, C, H, W)."""
    loader = DataLoader(
        data,
        batch_sampler=order,
        collate_fn=as_is,  # `data` gathers a whole batch at once
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    for images, _ in loader:
        yield images.to(device, non_blocking=True)


def as_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def total_steps(max_steps: int | None, max_epochs: float | None, steps_per_epoch: float) -> int:
    """How many steps: `max_steps` or `max_epochs`, whichever ends first; None is no limit."""
    limits = [max_steps, max_epochs and math.ceil(max_epochs * steps_per_epoch)]
    return min(limit for limit in limits if limit is not None)


def rank_rows(batch_size: int, accumulate: int, rank: int, world_size: int) -> slice:
    """Which rows of the global batch are this rank's.

    Raises:
        InputError: the batch cannot be shared out evenly.
    """
    parts = world_size * accumulate
    if batch_size % parts:
        below = batch_size // parts * parts
        raise InputError(
            f"job.batch_size={batch_size}: not divisible by {world_size} devices x "
            f"job.accumulate={accumulate}; the nearest that are: {below or parts}, {below + parts}."
        )
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)


def due(
    step: int,
    every: int | None,
    every_epochs: float | None = None,
    steps_per_epoch: float = math.inf,
) -> bool:
    """Whether `step` steps end an interval of so many steps, or of so many epochs."""
    if every is not None and step % every == 0:
        return True
    if every_epochs is None:
        return False
    interval = every_epochs * steps_per_epoch
    return step // interval > (step - 1) // interval


def agreed(fabric: Fabric, stop: bool, step: int) -> bool:
    """Whether any rank was asked to stop: all must leave the loop after the same step."""
    if fabric.world_size == 1:
        return stop
    if step % 10:
        return False
    return bool(
        fabric.all_reduce(torch.tensor(float(stop), device=fabric.device), reduce_op="sum") > 0
    )
