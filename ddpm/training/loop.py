"""The training loop: steps, log lines, checkpoints, and what a run of days needs around them."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm.data.base import ImageData
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError, shown
from ddpm.randomness import Order, StepNoise
from ddpm.runner.distributed.fabric import check_compiler, mesh_of, restart_peak
from ddpm.runner.distributed.fsdp import shard
from ddpm.runner.distributed.signals import GracefulStop
from ddpm.runner.execution import eager
from ddpm.runner.execution.run import Run
from ddpm.runner.safe_io.failpoint import crashpoint
from ddpm.runner.terminal.progress import Progress
from ddpm.training.compiling import NEVER, can_compile, compile_networks, may_compile, pays
from ddpm.training.ema import EMA
from ddpm.training.expected_memory import Expected, Trial, choose, expected, splits, warn
from ddpm.training.health import Watch
from ddpm.training.intervals import due, rank_rows, total_steps
from ddpm.training.loader import load
from ddpm.training.lr import LearningRate
from ddpm.training.meter import Meter
from ddpm.training.recompute import blocks, recompute
from ddpm.training.schedule import ScheduleTraining
from ddpm.training.state import Learned
from ddpm.training.step import Step
from ddpm.training.time_left import Outlook

logger = logging.getLogger(__name__)


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
        accumulate_grad_batches: int | str,
        warmup_steps: int,
        lr_decay_start: int | None,
        clip_grad_norm: float | None,
        ema_decay: float,
        ema_ramp: float,
        compile: bool | str,
        num_workers: int,
        max_nonfinite_steps: int,
        log_every: int,
        save_every: int | None,
        keep_checkpoints: int,
        recompute: bool = False,
    ) -> None:
        self.net, self.diffusion, self.data = model, diffusion, data
        self.optimizer, self.seed = optimizer, seed
        self.max_steps, self.max_epochs = max_steps, max_epochs
        self.batch_size = batch_size
        self.accumulate_grad_batches = accumulate_grad_batches
        self.warmup_steps, self.lr_decay_start = warmup_steps, lr_decay_start
        self.clip_grad_norm = clip_grad_norm
        self.ema_decay, self.ema_ramp = ema_decay, ema_ramp
        self.compile, self.num_workers = compile, num_workers
        self.compiled = compile is True  # auto: not yet
        self.compile_after: int | None = None  # auto: so many steps; None: not decided yet
        self.max_nonfinite_steps = max_nonfinite_steps
        self.log_every, self.save_every = log_every, save_every
        self.keep_checkpoints = keep_checkpoints
        self.recompute = recompute
        if recompute:
            blocks(model)  # refuses a network without any
        self.parts = (
            1 if accumulate_grad_batches == "auto" else accumulate_grad_batches
        )  # of a step, see `plan_memory`

    @abstractmethod
    def loss(
        self, model: nn.Module, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None
    ) -> Tensor:
        """What a step lowers the mean of, for each image: (B,). Of images (B, C, H, W) in [-1, 1],
        steps (B,), noise and labels (B,)."""

    @abstractmethod
    def due_to_inspect(self, step: int) -> bool:
        """Whether the network is to be looked at after `step` steps, beside after the last."""

    def measure(self, fabric: Fabric, network: nn.Module) -> dict[str, float]:
        """Figures of the averaged network, for the log."""
        return {}

    @property
    def inspection_steps(self) -> float:
        """How long `inspect` takes, about, in steps of training; 0: it draws nothing."""
        return 0.0

    def inspect(self, run: Run, fabric: Fabric, network: nn.Module, step: int) -> None:  # noqa: B027
        """Pictures of the averaged network."""

    def looked_at(self, fabric: Fabric) -> int:
        """Images that go forward at once when the network is looked at, on each device."""
        return 0

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
        run.check_data(self.data.fingerprint)
        total = total_steps(self.max_steps, self.max_epochs, self.steps_per_epoch)
        rows = rank_rows(self.batch_size, self.parts, fabric.global_rank, fabric.world_size)
        trial = self.make_trial(run, fabric)
        learned = self.make_learned(fabric)
        meter = Meter(self.batch_size, self.steps_per_epoch)
        start = run.restore(learned, meter)
        run.total = total
        if start >= total and run.was_done:
            run.say(f"steps    all {total} are done; a larger job.max_steps goes on")
            return
        self.recall_compiling(run, start)
        needs = self.plan_memory(run, trial, learned, rows)
        step = self.make_step(fabric, learned, rows)
        order = Order(len(self.data), self.seed, self.batch_size, rows, start, total)
        with (
            GracefulStop() as signals,
            run.begin(),
            Progress(total, start, enabled=run.leads) as progress,
        ):
            self.describe(run, start, total, needs)
            if self.is_seen_at(start, total) and not run.has_grid(start):
                self.inspect(run, fabric, learned.ema.model, start)  # it was killed while doing so
            watch = Watch(fabric, self.max_nonfinite_steps, signals, run.dir)
            self.train(run, step, order, learned, meter, watch, progress)

    def train(
        self,
        run: Run,
        step: Step,
        order: Order,
        learned: Learned,
        meter: Meter,
        watch: Watch,
        progress: Progress,
    ) -> None:
        """Steps, and what is due between them: the log first, then the checkpoint, then pictures,
        so that whatever a kill takes is made again. The console comes after the checkpoint: writing
        to it may block."""
        fabric, total = step.fabric, order.stop
        outlook = Outlook(
            order.start,
            total,
            is_seen_at=lambda done: self.is_seen_at(done, total),
            look=self.inspection_steps,
            device=fabric.device,
            say=progress.say,
            compiles=self.compiled,
        )
        batches = load(self.data, order, fabric.device, self.num_workers)
        for n, (images, labels) in enumerate(batches, start=order.start):
            metrics = step(n, images, labels)
            crashpoint("train.step")
            meter.add(metrics)
            done, last = n + 1, n + 1 == total
            left = outlook.after(done)
            if self.compile_now(run, learned, done, left):
                outlook.begin(done, compiles=True)
            stopping = not last and watch.stopping(done)
            saving = last or stopping or due(done, self.save_every)
            if watch.too_many_nonfinite(metrics.nonfinite, done, check_now=saving):
                raise InputError(self.why_broken(step, order, watch))
            looking = not stopping and self.is_seen_at(done, total)
            measured: dict[str, float] = {}
            text = None
            if looking:
                with meter.paused():
                    measured = self.measure(fabric, learned.ema.model)
            if done % self.log_every == 0 or last or measured:
                figures = meter.read(fabric, done) | step.rates(n) | measured
                run.log(done, figures)
                text = meter.text(figures)
            if saving:
                with meter.paused():
                    run.save(done, learned, meter, self.keep_checkpoints)
            progress.advance()
            if text is not None:
                progress.show(done, text)
            if looking:
                with meter.paused():
                    self.inspect(run, fabric, learned.ema.model, done)
            if stopping:
                run.preempted(watch.signals.received, f"saved after step {done}")
                break

    def recall_compiling(self, run: Run, start: int) -> None:
        """With job.compile=auto, a run that goes on is compiled after the step after which it was
        compiled when it began, and not at all where it was not."""
        if self.compile != "auto" or not may_compile(run.fabric.device):
            return
        self.compile_after = run.recall("compile_after")
        if self.compile_after is not None:
            run.remember(compile_after=self.compile_after)
            self.compiled = 0 < self.compile_after <= start and can_compile()

    def compile_now(self, run: Run, learned: Learned, done: int, left: float | None) -> bool:
        """With job.compile=auto, compile the networks where it is time to: for the steps after
        this one.

        Args:
            left: the seconds that are left, once they are known.
        """
        if self.compile != "auto" or self.compiled or not may_compile(run.fabric.device):
            return False
        if self.compile_after is None and left is not None:
            self.compile_after = run.fabric.broadcast(done if pays(left) else NEVER)
            run.remember(compile_after=self.compile_after)
            run.note(chosen=run.chosen)
        if done != self.compile_after or not can_compile():
            return False
        compile_networks(learned.model, learned.ema.model, falls_back=True)
        self.compiled = True
        return True

    def is_seen_at(self, step: int, total: int) -> bool:
        """Whether the network is looked at after `step` steps."""
        return step > 0 and (step == total or self.due_to_inspect(step))

    def make_trial(self, run: Run, fabric: Fabric) -> Trial | None:
        """What is to measure the network's memory, on those ranks that want to know."""
        if not run.leads and self.accumulate_grad_batches != "auto":
            return None
        return Trial(
            self.net,
            self.loss,
            fabric,
            shape=self.shape,
            labelled=self.label_dropout is not None,
            recomputes=self.recompute,
        )

    def plan_memory(
        self, run: Run, trial: Trial | None, learned: Learned, rows: slice
    ) -> Expected | None:
        """The memory that training is expected to take. With
        job.accumulate_grad_batches=auto it decides the number of micro-batches; a resumed run keeps
        the number it began with.

        Raises:
            InputError: nothing fits.
        """
        if trial is None:
            return None
        share, auto = rows.stop - rows.start, self.accumulate_grad_batches == "auto"
        try:
            needs = expected(
                trial,
                self.optimizer,
                learned.optimizer,
                batch=self.batch_size,
                share=share,
                parts=None if auto else self.parts,
                looked_at=self.looked_at(trial.fabric),
            )
        except Exception as error:  # a network of the user's own may not be made for it
            reason = shown(" ".join(str(error).split()), 200) or type(error).__name__
            if auto:
                raise InputError(
                    f"job.accumulate_grad_batches=auto: the memory that this network takes cannot "
                    f"be measured ({reason}). Give a number instead."
                ) from error
            logger.warning("The memory that training takes cannot be told: %s", reason)
            return None
        if auto:
            before = run.recall("accumulate")
            self.parts = before if before in splits(share) else choose(trial, needs)
            run.remember(accumulate=self.parts)
        restart_peak(trial.fabric.device)
        return needs

    def make_learned(self, fabric: Fabric) -> Learned:
        """Network and process on the device, or shared out over all, with the optimizer of both.

        Raises:
            InputError: hardware=fsdp, and the schedule learns.
        """
        mesh = mesh_of(fabric)
        net = self.net.to(memory_format=torch.channels_last)
        if mesh is None:
            net.to(fabric.device)
        ema = EMA(net, self.ema_decay, self.ema_ramp)
        if self.recompute:
            recompute(net)
        if mesh is not None:
            if self.diffusion.schedule is not None:
                raise InputError(
                    "hardware=fsdp: trains no schedule; choose a fixed one, or hardware=ddp."
                )
            for network in (net, ema.model):
                shard(network, mesh)
            ema.follow(net)
        self.diffusion.to(fabric.device)
        groups: list[dict[str, Any]] = [{"params": list(net.parameters())}]
        if schedule := list(self.diffusion.parameters()):  # not to be pulled towards 0
            groups.append({"params": schedule, "weight_decay": 0.0})
        if self.compile is not True:
            eager.shield_optimizers()
        optimizer = self.optimizer(groups)
        return Learned(net, ema, self.diffusion, optimizer, fabric.strategy.precision)

    def make_step(self, fabric: Fabric, learned: Learned, rows: slice) -> Step:
        """One step of training, as a function of its number, images and labels."""
        if self.compile is True:
            check_compiler(fabric.device)
        if self.compiled:
            auto = self.compile == "auto"
            compile_networks(learned.model, learned.ema.model, falls_back=auto)
        model, optimizer = fabric.setup(learned.model, learned.optimizer)
        return Step(
            fabric=fabric,
            model=model,
            optimizer=optimizer,
            diffusion=self.diffusion,
            loss=self.loss,
            ema=learned.ema,
            noise=StepNoise(
                self.seed,
                self.batch_size,
                self.shape,
                self.diffusion.T,
                fabric.device,
                self.diffusion.timesteps,
            ),
            rows=rows,
            flip=self.data.flip,
            label_dropout=self.label_dropout,
            accumulate=self.parts,
            clip_grad_norm=self.clip_grad_norm,
            learning_rate=LearningRate(
                learned.optimizer.defaults["lr"], self.warmup_steps, self.lr_decay_start
            ),
            schedule=self.make_schedule_training(fabric, model.module, rows),
        )

    def make_schedule_training(
        self, fabric: Fabric, network: nn.Module, rows: slice
    ) -> ScheduleTraining | None:
        """Training of a learned schedule; None: the schedule is fixed."""
        if self.diffusion.schedule is None:
            return None
        return ScheduleTraining(fabric, network, self.diffusion, rows, self.batch_size, self.parts)

    def why_broken(self, step: Step, order: Order, watch: Watch) -> str:
        """What to tell of a run whose numbers are not finite any more."""
        n = watch.failed_at - 1
        chosen = order.images(n)
        mine = self.data.__getitems__(chosen[step.rows])
        images, labels = (part.to(step.fabric.device) for part in mine)
        ts = step.noise(n, slice(None))[0].tolist()
        found = step.nonfinite_images(n, images, labels).nonzero().flatten().tolist()
        named = [f"image {chosen[i]} at t={ts[i]}" for i in found or range(len(ts))]
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        part = "loss" if found else "gradient"  # image by image, the loss is finite
        lr = step.learning_rate
        return (
            f"the {part} is not finite in step {n + 1}, for {', '.join(named[:5])}{more}. Steps "
            f"like that in a row: {watch.consecutive} (job.max_nonfinite_steps="
            f"{self.max_nonfinite_steps}); none touched the weights.\n"
            f"A lower optimizer.lr (now {lr.peak:g}) or a longer job.warmup_steps (now "
            f"{lr.warmup_steps}) helps. If the loss was good at the newest checkpoint, go on: "
            "resume=<run folder> optimizer.lr=... 'allow_changes=[optimizer.lr]'."
        )

    def describe(self, run: Run, start: int, total: int, needs: Expected | None) -> None:
        """What is about to be trained on what, and for how long."""
        parameters = sum(p.numel() for p in self.net.parameters())
        size = "x".join(str(n) for n in self.shape)
        epoch = f"{self.steps_per_epoch:.1f} steps an epoch"
        run.note(parameters=parameters)
        run.say(f"network  {parameters:,} parameters")
        run.say(f"data     {len(self.data):,} images of {size}, {epoch}")
        run.say(f"steps    {f'{start} to ' if start else ''}{total}, batch {self.batch_size}")
        if run.leads and needs is not None:
            run.note(expected_memory_mb=round(needs.total(self.parts) / 1e6, 1))
            run.say(f"memory   {needs.text(self.parts)}{', at most' if self.compiled else ''}")
            warn(needs, self.parts, run.fabric)
