"""The training loop: steps, log lines, checkpoints, and what a run of days needs around them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

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
from ddpm.jobs.run import Run
from ddpm.jobs.step import LearningRate, Step
from ddpm.randomness import Order, StepNoise
from ddpm.signals import GracefulStop


class Loop(ABC):
    """Trains a network on noisy images. conf/job/train.yaml says what each knob means.

    What is trained is said by `loss`; what of it is looked at, when `due_to_inspect` and at the
    end, by `measure` and `inspect`.
    """

    label_dropout: float | None = None  # None: no labels are fed

    def __init__(
        self,
        *,
        model: nn.Module,
        diffusion: GaussianDiffusion,
        data: ImageData,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
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
    ) -> None:
        self.net, self.diffusion, self.data = model, diffusion, data
        self.optimizer, self.seed = optimizer, seed
        self.max_steps, self.max_epochs = max_steps, max_epochs
        self.batch_size, self.accumulate = batch_size, accumulate
        self.warmup_steps, self.decay_steps = warmup_steps, decay_steps
        self.clip_grad_norm = clip_grad_norm
        self.ema_decay, self.ema_ramp = ema_decay, ema_ramp
        self.compile, self.num_workers = compile, num_workers
        self.log_every, self.save_every = log_every, save_every
        self.keep_checkpoints = keep_checkpoints

    @abstractmethod
    def loss(
        self, model: nn.Module, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None
    ) -> Tensor:
        """What a step lowers: of images (B, C, H, W) in [-1, 1], steps, noise and labels (B,)."""

    @abstractmethod
    def due_to_inspect(self, step: int) -> bool:
        """Whether the network is to be looked at after `step` steps, beside after the last."""

    def measure(self, fabric: Fabric, network: nn.Module) -> dict[str, float]:
        """Figures of the averaged network, for the log."""
        return {}

    def inspect(self, run: Run, fabric: Fabric, network: nn.Module, step: int) -> None:  # noqa: B027
        """Pictures of the averaged network."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return (self.data.channels, self.data.image_size, self.data.image_size)

    @property
    def steps_per_epoch(self) -> float:
        return len(self.data) / self.batch_size

    def __call__(self, *, run: Run, fabric: Fabric) -> None:
        """Train, from where the run stands."""
        self.data.prepare()
        total = total_steps(self.max_steps, self.max_epochs, self.steps_per_epoch)
        rows = rank_rows(self.batch_size, self.accumulate, fabric.global_rank, fabric.world_size)
        net = self.net.to(fabric.device, memory_format=torch.channels_last)
        self.diffusion.to(fabric.device)
        ema = EMA(net, self.ema_decay, self.ema_ramp)
        groups = [{"params": list(net.parameters())}]
        if schedule := list(self.diffusion.parameters()):  # not to be pulled towards 0
            groups.append({"params": schedule, "weight_decay": 0.0})
        inner = self.optimizer(groups)
        start = run.restore(net, ema.model, self.diffusion, inner)
        if start >= total:
            run.say(f"steps    all {total} are done; a larger job.max_steps goes on")
            return
        step = self.make_step(fabric, net, inner, ema, rows)
        order = Order(len(self.data), self.seed, self.batch_size, rows, start, total)
        meter = Meter(self.batch_size, self.steps_per_epoch)
        with (
            run.begin(),
            GracefulStop() as stop,
            Progress(total, start, enabled=run.leads) as progress,
        ):
            self.describe(run, start, total)
            batches = load(self.data, order, fabric.device, self.num_workers)
            for n, (images, labels) in enumerate(batches, start=start):
                loss, grad_norm = step(n, images, labels)
                meter.add(loss, grad_norm)
                done, last = n + 1, n + 1 == total
                stopping = not last and agreed(fabric, stop.received is not None, done)
                progress.advance()
                looking = last or (not stopping and self.due_to_inspect(done))
                measured: dict[str, float] = {}
                if looking:
                    with meter.paused():
                        self.diffusion.refresh()
                        measured = self.measure(fabric, ema.model)
                if done % self.log_every == 0 or last or stopping or measured:
                    figures = meter.read(fabric, done, step.learning_rate(n)) | measured
                    run.log(done, figures)
                    progress.show(done, meter.text(figures))
                    check_finite(figures["train/loss"], done, step.learning_rate)
                with meter.paused():
                    if last or stopping or due(done, self.save_every):
                        check_finite(float(loss), done, step.learning_rate)  # no broken weights
                        run.save(done, net, ema.model, self.diffusion, inner, self.keep_checkpoints)
                    if looking:
                        self.inspect(run, fabric, ema.model, done)
                if stopping:
                    run.end = "preempted"
                    run.say(f"stopped  asked to by a signal, saved after step {done}")
                    break

    def make_step(
        self,
        fabric: Fabric,
        net: nn.Module,
        inner: torch.optim.Optimizer,
        ema: EMA,
        rows: slice,
    ) -> Step:
        """One step of training, as a function of its number, images and labels."""
        if self.compile:  # in place, so that names in checkpoints stay clean
            net.compile()
            ema.model.compile()
        model, optimizer = fabric.setup(net, inner)
        return Step(
            fabric=fabric,
            model=model,
            optimizer=optimizer,
            diffusion=self.diffusion,
            loss=self.loss,
            ema=ema,
            noise=StepNoise(
                self.seed, self.batch_size, self.shape, self.diffusion.T, fabric.device
            ),
            rows=rows,
            flip=self.data.flip,
            label_dropout=self.label_dropout,
            accumulate=self.accumulate,
            clip_grad_norm=self.clip_grad_norm,
            learning_rate=LearningRate(inner.defaults["lr"], self.warmup_steps, self.decay_steps),
        )

    def describe(self, run: Run, start: int, total: int) -> None:
        """What is about to be trained on what, and for how long."""
        parameters = sum(p.numel() for p in self.net.parameters())
        size = "x".join(str(n) for n in self.shape)
        epoch = f"{self.steps_per_epoch:.1f} steps an epoch"
        run.say(f"network  {parameters:,} parameters")
        run.say(f"data     {len(self.data):,} images of {size}, {epoch}")
        run.say(f"steps    {f'{start} to ' if start else ''}{total}, batch {self.batch_size}")


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


def load(
    data: ImageData, order: Order, device: torch.device, num_workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's images and labels of each batch on the device: uint8 (B, C, H, W), int64 (B,)."""
    loader = DataLoader(
        data,
        batch_sampler=order,
        collate_fn=as_is,  # `data` gathers a whole batch at once
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


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
