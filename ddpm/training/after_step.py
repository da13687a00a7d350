"""Everything after a training step: measurements, log lines, checkpoints, previews, the end."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from ddpm.errors import InputError
from ddpm.randomness import Order
from ddpm.runner.execution.run import Run
from ddpm.runner.terminal.progress import Progress
from ddpm.training.best import Best
from ddpm.training.evaluation import PeriodicEvaluation
from ddpm.training.health import Requests, Watch, never
from ddpm.training.intervals import due
from ddpm.training.meter import Meter
from ddpm.training.state import TrainState
from ddpm.training.step import Step, StepMetrics
from ddpm.training.time_left import Outlook
from ddpm.training.validation import Validation

if TYPE_CHECKING:
    from ddpm.training.loop import Loop


@dataclass
class AfterStep:
    """Does what is due after each step of a run.

    The order in `__call__` matters: whatever a kill interrupts is repeated after a resume, and the
    console, which may block, comes after the checkpoint.
    """

    loop: "Loop"
    run: Run
    step: Step
    order: Order
    state: TrainState
    meter: Meter
    watch: Watch
    progress: Progress
    validation: Validation | None
    evaluation: PeriodicEvaluation | None
    best: Best

    def __post_init__(self) -> None:
        self.network, total = self.state.ema.model, self.order.stop
        first, every, evaluation = self.order.start, self.state.ema.snapshots, self.evaluation
        self.validate_at = 0 if self.validation is None else self.validation.next(first)
        self.snapshot_every = -(-total // every) if every else None
        self.outlook = Outlook(
            first,
            total,
            is_preview_step=lambda done: self.loop.is_preview_step(done, total),
            preview_steps=self.loop.preview_steps,
            evaluate_every=0 if evaluation is None else evaluation.every,
            evaluation_steps=0.0 if evaluation is None else self.loop.evaluation_steps,
            device=self.step.fabric.device,
            say=self.progress.say,
            save_every=self.loop.save_every,
            compiles=self.loop.compilation.compiled,
        )

    def __call__(self, n: int, step_metrics: StepMetrics) -> bool:
        """Do what is due after step `n`, which counts from 0; return whether the run ends.

        Raises:
            InputError: too many steps were not finite.
        """
        loop, best, done = self.loop, self.best, n + 1
        self.compile_if_due(done)
        metrics = self.validate(done)
        scores = self.evaluate(done)  # None: interrupted
        is_best = best.would_be_best(scores or {})
        metrics |= scores or {}
        last = done == self.order.stop or best.levelled_off
        requests = Requests() if last else self.watch.requested(done)
        stopping = scores is None or requests.stop
        saving = last or stopping or is_best or requests.checkpoint or due(done, loop.save_every)
        preview_due = last or requests.sample or loop.is_preview_step(done, self.order.stop)
        previewing = preview_due and not stopping
        check_now = saving or previewing  # which may have to save
        if self.watch.too_many_nonfinite(step_metrics.nonfinite, done, check_now):
            raise InputError(explain_nonfinite(loop, self.step, self.order, self.watch))
        if previewing:
            with self.meter.paused():
                metrics |= loop.evaluate(self.step.fabric, self.network)
        text = None
        if done % loop.log_every == 0 or last or metrics:
            text = self.log(n, metrics)
        self.save_snapshot(done)
        if saving:
            self.save(done, metrics)
        self.progress.advance()
        if text is not None:
            self.progress.show(done, text)
        if previewing and not self.preview(done, last):
            stopping = True
            if not saving:
                self.save(done, metrics)
        if stopping:
            self.run.preempted(self.watch.signals.received, f"saved after step {done}")
        elif best.levelled_off:
            self.run.say(f"stopped  {best.reason}")
        return stopping or last

    def compile_if_due(self, done: int) -> None:
        """With job.compile=auto, compile the networks once it pays off."""
        compilation, seconds_left = self.loop.compilation, self.outlook.after(done)
        if compilation.after_step(self.run, done, seconds_left, self.state.model, self.network):
            self.step.graph = None
            self.outlook.begin(done, compiles=True)

    def validate(self, done: int) -> dict[str, float]:
        """Metrics of the held-out loss, if a validation is due after this step."""
        if done != self.validate_at or self.validation is None:
            return {}
        with self.meter.paused():
            metrics = self.validation(done, self.state.model, self.state.ema)
        if self.run.leads:
            self.validation.write(self.run.dir)
        self.best.record(done, metrics)
        self.validate_at = self.validation.next(done)
        return metrics

    def evaluate(self, done: int) -> dict[str, float] | None:
        """Scores of samples, if they are due after this step; None: a stop was requested."""
        if self.evaluation is None or not self.evaluation.is_due(done):
            return {}
        with self.meter.paused():
            scores = self.evaluation(done, self.network, self.watch.stop_wanted)
        if scores is not None:
            self.best.evaluated = done
            self.best.record(done, scores)
        return scores

    def log(self, n: int, metrics: dict[str, float]) -> str:
        """Log the training metrics since the last log line, and these; return them as text."""
        row = self.meter.read(self.step.fabric, n + 1) | self.step.rates(n) | metrics
        self.run.log(n + 1, row)
        return self.meter.text(row)

    def preview(self, done: int, last: bool) -> bool:
        """Draw a preview; False if a stop was requested. After the last step nothing is lost if it
        is killed, so it is drawn to the end."""
        asked_to_stop = never if last else self.watch.stop_wanted
        with self.meter.paused():
            drawn = self.loop.preview(self.run, self.step.fabric, self.network, done, asked_to_stop)
        return drawn is not False

    def save_snapshot(self, done: int) -> None:
        """Save a snapshot of the averages, if one is due."""
        if self.snapshot_every and done % self.snapshot_every == 0:
            with self.meter.paused():
                self.run.save_snapshot(done, self.state.averages(keep=self.run.leads))

    def save(self, done: int, metrics: dict[str, float]) -> None:
        """Save a checkpoint."""
        self.best.record_checkpoint(done, metrics)
        self.run.step = done  # also if the weights are not finite, which raises here
        with self.meter.paused():
            meter = self.meter.state(self.step.fabric)
            entries = self.state.state(keep=self.run.leads)
            entries |= {"meter": meter, "best": self.best.state()}
            is_best = self.best.kept_step == done
            self.run.save(done, entries, keep=self.loop.keep_checkpoints, is_best=is_best)


def finish_evaluation(
    run: Run,
    network: nn.Module,
    step: int,
    evaluation: PeriodicEvaluation | None,
    watch: Watch,
    best: Best,
) -> bool:
    """Finish the evaluation in which the run was stopped after `step` steps, if there is one.
    Return whether training continues: False if it is stopped again or has levelled off."""
    if evaluation is None or best.evaluated >= step or not evaluation.is_due(step):
        return True
    scores = evaluation(step, network, watch.stop_wanted)
    if scores is None:
        run.preempted(watch.signals.received, f"in the evaluation of step {step}")
        return False
    run.log(step, scores)
    best.evaluated = step
    best.record(step, scores)
    best.record_checkpoint(step, scores)
    if best.kept_step == step:
        run.keep_best()
    if best.levelled_off:
        run.say(f"stopped  {best.reason}")
    return not best.levelled_off


def explain_nonfinite(loop: "Loop", step: Step, order: Order, watch: Watch) -> str:
    """The error message for too many non-finite steps."""
    n = watch.failed_at - 1
    indices = order.images(n)
    batch = loop.data.__getitems__(indices[step.rows])
    images, labels = (part.to(step.fabric.device) for part in batch)
    ts = step.noise(n, slice(None))[0].tolist()
    nonfinite = step.nonfinite_images(n, images, labels).nonzero().flatten().tolist()
    named = [f"image {indices[i]} at t={ts[i]}" for i in nonfinite or range(len(ts))]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    part = "loss" if nonfinite else "gradient"  # the loss of every image is finite
    lr = step.learning_rate
    return (
        f"the {part} is not finite in step {n + 1}, for {', '.join(named[:5])}{more}. "
        f"Consecutive steps like that: {watch.consecutive} (job.max_nonfinite_steps="
        f"{loop.max_nonfinite_steps}); they did not change the weights.\n"
        f"A lower optimizer.lr (now {lr.peak:g}) or a longer job.warmup_steps (now "
        f"{lr.warmup_steps}) helps. If the loss was good at the newest checkpoint, continue: "
        "resume=<run folder> optimizer.lr=... 'allow_changes=[optimizer.lr]'."
    )
