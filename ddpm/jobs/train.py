"""job=train: train a denoising network (Ho et al. 2020, algorithm 1)."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm.augment.base import Augment
from ddpm.denoising import training_losses
from ddpm.errors import InputError, nearest, one_line
from ddpm.evaluation import passports
from ddpm.evaluation.needs import check_needs, needs_of
from ddpm.evaluation.reference import REFERENCE_SEED, references_of
from ddpm.features.base import Features
from ddpm.guidance.base import Guidance
from ddpm.metrics.base import Metric
from ddpm.pipeline import Pipeline, Sampler
from ddpm.runner.execution.run import Run
from ddpm.samplers.dpm_solver import DPMSolver
from ddpm.training import evaluation as scoring
from ddpm.training.best import LOSS, Best
from ddpm.training.evaluation import PeriodicEvaluation
from ddpm.training.expected_memory import MemoryEstimate
from ddpm.training.intervals import due
from ddpm.training.loop import Loop
from ddpm.training.preview import BATCH, preview_grid

VALIDATED = (LOSS, "eval/loss_raw")  # metrics of job.validate_every

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class Train(Loop):
    """Minimise the loss of the diffusion process, and draw previews. conf/job/train.yaml explains
    the arguments.
    """

    validation_batch = BATCH

    sampler: Sampler
    guidance: Guidance
    label_dropout: float | None = field()  # required: without the default of `Loop`
    sample_every: int | None
    sample_every_epochs: float | None
    num_samples: int
    validate_every: int | None = field()
    keep_best: str | None
    patience: int | None = None
    features: Features | None = None
    metrics: dict[str, Metric] | None = None
    evaluate_every: int | None = None
    evaluate_samples: int = 512
    evaluate_steps: int | None = 15
    evaluate_reference: int | None = 10000
    augment: Augment | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data.conditional:
            self.label_dropout = None
        if not callable(self.augment):  # {} of augment=none
            self.augment = None
        self.chosen_metrics = self.metrics or {}
        self.best_sign = self.sign_of_best()

    def loss(
        self, model: nn.Module, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None
    ) -> Tensor:
        return training_losses(self.diffusion, model, x_0, t, eps, label)

    def describe(self, run: Run, start: int, total: int, estimate: MemoryEstimate | None) -> None:
        super().describe(run, start, total, estimate)
        objective, weighting = self.diffusion.objective, self.diffusion.weighting
        if objective.measures:
            run.say(f"measured {objective.describe()}")
        if weights := weighting.describe(self.diffusion.snr.cpu(), objective):
            run.say(f"weights  {weights}")

    def make_best(self) -> Best:
        return Best(self.keep_best, self.patience, self.best_sign)

    def sign_of_best(self) -> int:
        """1 if higher values of the metric that job.keep_best names are better, -1 if lower ones
        are.

        Raises:
            InputError: nothing measures it, or it has no better direction.
        """
        directions = dict.fromkeys(VALIDATED, "lower")
        if self.evaluate_every is not None and self.features is not None:
            for metric in self.chosen_metrics.values():
                for name, better in metric.figures(self.features).items():
                    directions |= dict.fromkeys(
                        (f"eval/{name}", f"eval/{name}{scoring.HELD_OUT}"), better
                    )
        direction = directions.get(self.keep_best or VALIDATED[0])
        if direction in ("lower", "higher"):
            return -1 if direction == "lower" else 1
        usable = [name for name, better in directions.items() if better != "neither"]
        raise InputError(
            f"job.keep_best={self.keep_best}: no metric of this run by which checkpoints can be "
            f"ranked; there are {', '.join(usable)}.{nearest(str(self.keep_best), usable)}"
        )

    def make_evaluation(self, run: Run, fabric: Fabric, steps: range) -> PeriodicEvaluation | None:
        """The evaluation of job.evaluate_every; prints what it costs.

        Raises:
            InputError: a metric needs what is not there.
        """
        if self.evaluate_every is None or self.features is None:
            return None
        references = references_of(self.data, self.evaluate_reference, REFERENCE_SEED)
        check_needs(
            self.chosen_metrics,
            self.features,
            self.data,
            self.evaluate_samples,
            has_network=False,
            real={role: len(reference) for role, reference in references.items()},
        )
        described = bool(needs_of(self.chosen_metrics) & {"features", "classes"})
        if described:
            self.features.to(fabric.device).passport()  # trains features=data now, not later
        run.say(self.describe_evaluation(self.features, sum(map(len, references.values()))))
        return PeriodicEvaluation(
            run=run,
            fabric=fabric,
            features=self.features if described else None,
            metrics=self.chosen_metrics,
            references=references,
            pipeline=lambda network: self.pipeline(fabric, network, self.evaluation_sampler),
            labels=self.labels,
            every=self.evaluate_every,
            n=self.evaluate_samples,
            sampler=passports.part(run.plan.hparams, "sampler")
            if self.evaluate_steps is None
            else {"name": "dpm_solver", "steps": self.evaluate_steps},
            total=steps.stop,
        )

    def describe_evaluation(self, features: Features, real: int) -> str:
        """The cost of an evaluation, in a line; `real` is the number of real pictures."""
        evaluations, steps = self.evaluations(self.evaluation_sampler), self.evaluation_steps
        return (
            f"scores   {', '.join(self.chosen_metrics)} by features={features.name}, every "
            f"{self.evaluate_every:,} steps: {self.evaluate_samples:,} samples of {evaluations:,} "
            f"network evaluations each, about as long as {steps:,.0f} steps; and "
            f"{real:,} real pictures"
        )

    @cached_property
    def evaluation_sampler(self) -> Sampler:
        if self.evaluate_steps is None:
            return self.sampler
        return DPMSolver(steps=min(self.evaluate_steps, self.diffusion.T), order=2)

    @property
    def evaluation_steps(self) -> float:
        return self.in_steps(self.evaluation_sampler, self.evaluate_samples)

    def in_steps(self, sampler: Sampler, images: int) -> float:
        """The duration of drawing so many images, in training steps."""
        # Forward and backward together take three times as long as forward alone.
        return self.evaluations(sampler) * images / (3 * self.batch_size)

    def evaluations(self, sampler: Sampler) -> int:
        """Network evaluations of an image; 0 if a user's own sampler cannot be counted."""
        pipeline = self.pipeline(None, self.net, sampler)
        try:
            return pipeline.evaluations(0 if self.labels else None)
        except Exception:
            return 0

    @property
    def labels(self) -> range | None:
        """All classes, if images have labels."""
        labelled = self.data.conditional or self.guidance.labelled
        return range(self.data.num_classes or 0) if labelled else None

    def pipeline(self, fabric: Fabric | None, network: nn.Module, sampler: Sampler) -> Pipeline:
        return Pipeline(
            network,
            self.diffusion,
            sampler,
            self.shape,
            guidance=self.guidance,
            num_classes=self.data.num_classes,
            device=self.diffusion.betas.device,
            **({} if fabric is None else {"autocast": fabric.autocast}),
        )

    def is_eval_step(self, step: int) -> bool:
        return due(step, self.sample_every, self.sample_every_epochs, self.steps_per_epoch)

    @property
    def preview_steps(self) -> float:
        return self.in_steps(self.sampler, self.num_samples)

    def eval_batch(self, fabric: Fabric) -> int:
        most = self.num_samples if self.evaluate_every is None else BATCH * fabric.world_size
        return min(BATCH, -(-most // fabric.world_size))

    def preview(
        self,
        run: Run,
        fabric: Fabric,
        network: nn.Module,
        step: int,
        asked_to_stop: Callable[[], bool],
    ) -> bool:
        """Log a grid of samples, of all classes in turn if images have labels."""
        pipeline = self.pipeline(fabric, network, self.sampler)
        try:
            grid = preview_grid(fabric, pipeline, self.num_samples, self.labels, asked_to_stop)
        except Exception as error:
            if fabric.world_size > 1:
                raise  # the other processes would wait for this one's images
            logger.warning("No preview of step %d; the run continues: %s", step, one_line(error))
            return True
        if grid is not None:
            run.log_grid(step, grid)
        return grid is not None
