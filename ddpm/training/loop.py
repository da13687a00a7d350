"""The training loop: what a run is made of, how it begins or resumes, and its steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm.augment.base import Augment
from ddpm.data.base import ImageData
from ddpm.diffusion import GaussianDiffusion
from ddpm.ema.base import EMA
from ddpm.errors import InputError
from ddpm.randomness import Order, StepNoise
from ddpm.runner import roles
from ddpm.runner.distributed.fabric import mesh_of
from ddpm.runner.distributed.fsdp import shard
from ddpm.runner.distributed.signals import GracefulStop
from ddpm.runner.execution import eager
from ddpm.runner.execution.run import Run
from ddpm.runner.safe_io.failpoint import crashpoint
from ddpm.runner.terminal.progress import Progress
from ddpm.training.after_step import AfterStep, finish_evaluation
from ddpm.training.best import LOSS, Best
from ddpm.training.compiling import Compilation
from ddpm.training.evaluation import PeriodicEvaluation
from ddpm.training.expected_memory import MemoryEstimate, plan_memory, warn_if_too_large
from ddpm.training.health import Watch, never
from ddpm.training.intervals import rank_rows, total_steps
from ddpm.training.loader import load
from ddpm.training.lr import LearningRate
from ddpm.training.memory_probe import MemoryProbe
from ddpm.training.meter import Meter
from ddpm.training.recompute import blocks, recompute
from ddpm.training.schedule import ScheduleTraining
from ddpm.training.state import TrainState
from ddpm.training.step import Step
from ddpm.training.validation import Validation, held_out_of, next_step

MEASURED = 4096  # images that an objective measures, at most


@dataclass(kw_only=True, eq=False)
class Loop(ABC):
    """Trains a network on noisy images. conf/job/train.yaml explains the arguments.

    Subclasses define the loss, the steps after which the averaged network is evaluated, and how:
    `evaluate` returns metrics, `preview` draws images.
    """

    model: nn.Module
    diffusion: GaussianDiffusion
    data: ImageData
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    seed: int
    max_steps: int | None
    max_epochs: float | None
    batch_size: int
    accumulate_grad_batches: int | str
    warmup_steps: int
    lr_decay_start: int | None
    clip_grad_norm: float | None
    ema: Callable[..., EMA]
    ema_decay: float
    ema_ramp: float
    compile: bool | str
    num_workers: int
    max_nonfinite_steps: int
    log_every: int
    save_every: int | None
    keep_checkpoints: int
    recompute: bool = False
    lr_decay: str = "inverse"

    label_dropout: float | None = field(default=None, init=False)  # None: no labels are used
    augment: Augment | None = field(default=None, init=False)
    validate_every: int | None = field(default=None, init=False)
    validation: ClassVar[type[Validation]] = Validation
    validated: ClassVar[str] = LOSS  # its metrics, for the terminal
    validation_batch: ClassVar[int | None] = None  # most images at a time; None: as in training

    def __post_init__(self) -> None:
        self.net = self.model
        self.accumulates_auto = isinstance(self.accumulate_grad_batches, str)
        self.accumulate = 1  # micro-batches of a step; with auto see `plan_memory`
        if not isinstance(self.accumulate_grad_batches, str):
            self.accumulate = self.accumulate_grad_batches
        self.compilation = Compilation(self.compile)
        if self.recompute:
            blocks(self.net)  # raises for a network without any

    @abstractmethod
    def loss(
        self, model: nn.Module, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None
    ) -> Tensor:
        """Per-image training loss, (B,); the step minimises its mean.

        x_0 (B, C, H, W), steps t (B,), noise eps like x_0, labels (B,) or None.
        """

    def make_best(self) -> Best:
        """The tracker of the best checkpoint and of early stopping."""
        return Best()

    def make_validation(self, run: Run, fabric: Fabric, steps: range) -> Validation | None:
        """The measurement of the held-out loss; None if it is due after none of these steps, or if
        there are no held-out images, which a line then says."""
        every, batch_size = self.validate_every, self.batch_size
        if every is None or not next_step(steps.start, steps.stop, every, batch_size):
            return None
        if (held_out := held_out_of(run, self.data, self.validated)) is None:
            return None
        batch = -(-batch_size // (fabric.world_size * self.accumulate))
        return self.validation(
            fabric=fabric,
            diffusion=self.diffusion,
            train=self.data,
            held_out=held_out,
            every=every,
            batch_size=batch_size,
            total=steps.stop,
            labelled=self.label_dropout is not None,
            batch=min(self.validation_batch or batch, batch),
        )

    def make_evaluation(self, run: Run, fabric: Fabric, steps: range) -> PeriodicEvaluation | None:
        """The scoring of samples; None if it is due after none of these steps."""
        return None

    @abstractmethod
    def is_eval_step(self, step: int) -> bool:
        """Whether to evaluate and preview after `step` steps; the last step always does."""

    def evaluate(self, fabric: Fabric, network: nn.Module) -> dict[str, float]:
        """Metrics of the averaged network, for the log."""
        return {}

    def preview(
        self,
        run: Run,
        fabric: Fabric,
        network: nn.Module,
        step: int,
        asked_to_stop: Callable[[], bool],
    ) -> bool:
        """Draw images with the averaged network; False if it stopped before all were drawn.

        Args:
            asked_to_stop: whether to stop; collective.
        """
        return True

    @property
    def preview_steps(self) -> float:
        """Approximate duration of `preview`, in training steps; 0: it draws nothing."""
        return 0.0

    @property
    def evaluation_steps(self) -> float:
        """Approximate duration of an evaluation, in training steps."""
        return 0.0

    def eval_batch(self, fabric: Fabric) -> int:
        """Images of a forward pass in `evaluate` or `preview`, on each device."""
        return 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.data.shape

    @property
    def steps_per_epoch(self) -> float:
        return len(self.data) / self.batch_size

    def __call__(self, *, run: Run, fabric: Fabric) -> None:
        """Train, from the step that the run has reached."""
        self.data.prepare()
        run.check_data(self.data.fingerprint)
        self.measure()
        length = total = total_steps(self.max_steps, self.max_epochs, self.steps_per_epoch)
        rows = rank_rows(self.batch_size, self.accumulate, fabric.global_rank, fabric.world_size)
        probe = self.make_probe(fabric) if run.leads or self.accumulates_auto else None
        state = self.initial_state(run, fabric)
        meter, best = Meter(self.batch_size, self.steps_per_epoch), self.make_best()
        start = self.restore(run, state, meter, best)
        run.total = total
        if run.already_done and (reason := self.nothing_left(best, start, total)):
            run.say(f"steps    {reason} continues the run")
            return
        if best.levelled_off:
            total = start  # killed before its last preview
        self.compilation.resume(run, start)
        estimate = self.plan_memory(run, probe, state, rows)
        step = self.make_step(fabric, state, rows, length)
        order = Order(len(self.data), self.seed, self.batch_size, rows, start, total)
        validation = self.make_validation(run, fabric, range(start, total))
        evaluation = self.make_evaluation(run, fabric, range(start, total))
        with (
            GracefulStop() as signals,
            run.begin(),
            Progress(total, start, enabled=run.leads) as progress,
        ):
            self.describe(run, start, total, estimate)
            if decay := step.learning_rate.describe(start):
                run.say(f"rate     {decay}")
            run.forget_snapshots(start)
            watch = Watch(fabric, self.max_nonfinite_steps, signals, run.dir)
            if self.is_preview_step(start, total) and not run.has_grid(start):  # it was interrupted
                ask = never if start == total else watch.stop_wanted
                if self.preview(run, fabric, state.ema.model, start, ask) is False:
                    run.preempted(signals.received, f"in the preview of step {start}")
                    return
            if not finish_evaluation(run, state.ema.model, start, evaluation, watch, best):
                return
            measures = (validation, evaluation, best)
            after_step = AfterStep(self, run, step, order, state, meter, watch, progress, *measures)
            self.train(step, order, meter, after_step)

    def initial_state(self, run: Run, fabric: Fabric) -> TrainState:
        """The state of a new run; with init_from, the weights of another run are loaded into it."""
        initial, run.initial = run.initial, None  # frees their memory at the end
        if initial is not None:
            initial.load(self.net, self.diffusion)
        state = self.make_state(fabric)
        if initial is not None:
            initial.load_average(state.ema.model)
            run.say(f"init     {initial.text()}")
        return state

    def restore(self, run: Run, state: TrainState, meter: Meter, best: Best) -> int:
        """Load the checkpoint that the run resumes, if any; return the number of steps done."""
        if (stored := run.take_state()) is not None:
            state.load(stored, run.path)
            meter.restore(stored.get("meter"))
            best.restore(stored.get("best"))
            if best.kept_step == run.step:
                run.keep_best()  # the run may have been killed before it did so
        return run.step

    def nothing_left(self, best: Best, start: int, total: int) -> str | None:
        """Why no step is left of a run that is done, and which key continues it; None: some are."""
        if start >= total:
            limit = "max_steps" if self.max_steps == total else "max_epochs"
            key = f"job.{limit}"
            fixed = roles.is_fixed_on_resume(key, self.lr_decay)
            allowed = f" with 'allow_changes=[{key}]'" if fixed else ""
            done = f"all {total} are done"
            if start > total:
                done = f"{start} are done, more than {key}={getattr(self, limit)}"
            return f"{done}; a larger {key}{allowed}"
        return f"{best.reason}; a larger job.patience" if best.levelled_off else None

    def train(self, step: Step, order: Order, meter: Meter, after_step: AfterStep) -> None:
        """Algorithm 1 of Ho et al. 2020: take all steps, or until `after_step` ends the run."""
        batches = load(self.data, order, step.fabric.device, self.num_workers)
        for n, (images, labels) in enumerate(batches, start=order.start):
            metrics = step(n, images, labels)
            crashpoint("train.step")
            meter.add(metrics)
            if after_step(n, metrics):
                break

    def measure(self) -> None:
        """Let the objective measure some images, evenly spread over the data."""
        if self.diffusion.objective.measures:
            count = len(self.data)
            rows = torch.linspace(0, count - 1, min(count, MEASURED)).long().tolist()
            self.diffusion.measure(self.data.__getitems__(rows)[0])

    def is_preview_step(self, step: int, total: int) -> bool:
        """Whether to evaluate and preview after `step` of `total` steps."""
        return step > 0 and (step == total or self.is_eval_step(step))

    def make_probe(self, fabric: Fabric) -> MemoryProbe:
        """The probe of the network's memory; made before it is sharded."""
        return MemoryProbe(
            self.net,
            self.loss,
            fabric,
            shape=self.shape,
            labelled=self.label_dropout is not None,
            recomputes=self.recompute,
        )

    def plan_memory(
        self, run: Run, probe: MemoryProbe | None, state: TrainState, rows: slice
    ) -> MemoryEstimate | None:
        """The expected memory; with job.accumulate_grad_batches=auto, set `accumulate`.

        Raises:
            InputError: nothing fits, or auto on a network that cannot be measured.
        """
        if probe is None:
            return None
        estimate, self.accumulate = plan_memory(
            run,
            probe,
            self.optimizer,
            state.optimizer,
            batch=self.batch_size,
            share=rows.stop - rows.start,
            accumulate=None if self.accumulates_auto else self.accumulate,
            averages=len(state.ema.models),
            eval_batch=self.eval_batch(probe.fabric),
        )
        return estimate

    def make_state(self, fabric: Fabric) -> TrainState:
        """Network, average, process and optimizer on the device, or sharded over all devices.

        Raises:
            InputError: hardware=fsdp with a learned schedule.
        """
        mesh = mesh_of(fabric)
        net = self.net.to(memory_format=torch.channels_last)
        if mesh is None:
            net.to(fabric.device)
        ema = self.ema(net, decay=self.ema_decay, ramp=self.ema_ramp)
        if self.recompute:
            recompute(net)
        if mesh is not None:
            if self.diffusion.schedule is not None:
                raise InputError(
                    "hardware=fsdp: cannot train schedule=learned; choose a fixed schedule, or "
                    "hardware=ddp."
                )
            for network in (net, *ema.models.values()):
                shard(network, mesh)
            ema.bind(net)
        self.diffusion.to(fabric.device)
        groups: list[dict[str, Any]] = [{"params": list(net.parameters())}]
        if schedule := list(self.diffusion.parameters()):  # must not decay towards 0
            groups.append({"params": schedule, "weight_decay": 0.0})
        if self.compilation.auto or not self.compilation.compiled:
            eager.shield_optimizers()
        optimizer = self.optimizer(groups)
        return TrainState(net, ema, self.diffusion, optimizer, fabric.strategy.precision)

    def make_step(
        self, fabric: Fabric, state: TrainState, rows: slice, total: int | None = None
    ) -> Step:
        """The training step, with the networks compiled if that is due from the start.

        Args:
            rows: this rank's rows of the global batch.
            total: the length of the run, at whose end cosine and linear decay reach 0.
        """
        self.compilation.at_start(fabric.device, state.model, state.ema.model)
        model, optimizer = fabric.setup(state.model, state.optimizer)
        diffusion, batch_size = self.diffusion, self.batch_size
        schedule = None
        if diffusion.schedule is not None:
            schedule = ScheduleTraining(
                fabric, model.module, diffusion, rows, batch_size, self.accumulate
            )
        noise = StepNoise(
            self.seed, batch_size, self.shape, diffusion.T, fabric.device, diffusion.timesteps
        )
        made = Step(
            fabric=fabric,
            model=model,
            optimizer=optimizer,
            diffusion=diffusion,
            loss=self.loss,
            ema=state.ema,
            noise=noise,
            rows=rows,
            flip=self.data.flip,
            label_dropout=self.label_dropout,
            accumulate=self.accumulate,
            clip_grad_norm=self.clip_grad_norm,
            learning_rate=LearningRate(
                state.optimizer.defaults["lr"],
                self.warmup_steps,
                self.lr_decay_start,
                self.lr_decay,
                total,
            ),
            schedule=schedule,
            augment=self.augment,
        )
        if not self.recompute:  # it restores the state of the generator, which cannot be recorded
            made.replay()
        return made

    def describe(self, run: Run, start: int, total: int, estimate: MemoryEstimate | None) -> None:
        """Print the size of the network, the data, the run and its memory."""
        parameters = sum(p.numel() for p in self.net.parameters())
        size = "x".join(str(n) for n in self.shape)
        epoch = f"{self.steps_per_epoch:.1f} steps an epoch"
        run.note(parameters=parameters)
        run.say(f"network  {parameters:,} parameters")
        run.say(f"data     {len(self.data):,} images of {size}, {epoch}")
        run.say(f"steps    {f'{start} to ' if start else ''}{total}, batch {self.batch_size}")
        if run.leads and estimate is not None:
            run.note(expected_memory_mb=round(estimate.total(self.accumulate) / 1e6, 1))
            limit = ", at most" if self.compilation.compiled else ""
            run.say(f"memory   {estimate.text(self.accumulate)}{limit}")
            warn_if_too_large(estimate, self.accumulate, run.fabric)
