"""job=train: train a denoising network (Ho et al. 2020, algorithm 1)."""

import logging
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm.denoising import training_losses
from ddpm.errors import InputError, one_line
from ddpm.guidance.base import Guidance
from ddpm.pipeline import Pipeline, Sampler
from ddpm.runner.execution.run import Run
from ddpm.training.best import Best
from ddpm.training.expected_memory import MemoryEstimate
from ddpm.training.intervals import due
from ddpm.training.loop import Loop
from ddpm.training.preview import BATCH, evaluations, preview_grid
from ddpm.training.validation import Validation, next_step

logger = logging.getLogger(__name__)


class Train(Loop):
    """Minimise the loss of the diffusion process, and draw previews. conf/job/train.yaml explains
    the arguments.
    """

    def __init__(
        self,
        *,
        sampler: Sampler,
        guidance: Guidance,
        label_dropout: float,
        sample_every: int | None,
        sample_every_epochs: float | None,
        num_samples: int,
        validate_every: int | None,
        keep_best: str | None,
        patience: int | None = None,
        **loop: Any,
    ) -> None:
        super().__init__(**loop)
        self.sampler, self.guidance = sampler, guidance
        self.label_dropout = label_dropout if self.data.conditional else None
        self.sample_every, self.sample_every_epochs = sample_every, sample_every_epochs
        self.num_samples = num_samples
        self.validate_every, self.keep_best, self.patience = validate_every, keep_best, patience

    def loss(
        self, model: nn.Module, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None
    ) -> Tensor:
        return training_losses(self.diffusion, model, x_0, t, eps, label)

    def describe(self, run: Run, start: int, total: int, estimate: MemoryEstimate | None) -> None:
        super().describe(run, start, total, estimate)
        objective, weighting = self.diffusion.objective, self.diffusion.weighting
        if objective.measures:
            run.say(f"measured {objective.describe()}")
        if weights := weighting.describe(self.diffusion.snr, objective):
            run.say(f"weights  {weights}")

    def make_best(self) -> Best:
        return Best(self.keep_best, self.patience)

    def make_validation(self, run: Run, fabric: Fabric, steps: range) -> Validation | None:
        """Measures the held-out loss, if there are held-out images; says so if there are none."""
        every, batch_size = self.validate_every, self.batch_size
        if every is None or not next_step(steps.start, steps.stop, every, batch_size):
            return None
        held_out, reason = None, "none, as data.holdout=0 or data.split is not train"
        try:
            held_out = self.data.held_out()
            if held_out is not None:
                run.say(f"held out {len(held_out):,} images, for eval/loss")
        except InputError as error:
            held_out, reason = None, one_line(error)
        if held_out is None:
            run.say(f"held out {reason}: no eval/loss")
            return None
        return Validation(
            fabric=fabric,
            diffusion=self.diffusion,
            train=self.data,
            held_out=held_out,
            every=every,
            batch_size=batch_size,
            total=steps.stop,
            labelled=self.label_dropout is not None,
            batch=min(BATCH, -(-batch_size // (fabric.world_size * self.accumulate))),
        )

    def is_eval_step(self, step: int) -> bool:
        return due(step, self.sample_every, self.sample_every_epochs, self.steps_per_epoch)

    @property
    def preview_steps(self) -> float:
        # Forward and backward together take three times as long as forward alone.
        images = evaluations(self.sampler, self.diffusion) * self.num_samples
        return images / (3 * self.batch_size)

    def eval_batch(self, fabric: Fabric) -> int:
        return min(BATCH, -(-self.num_samples // fabric.world_size))

    def preview(self, run: Run, fabric: Fabric, network: nn.Module, step: int) -> None:
        """Log a grid of samples, of all classes in turn if images have labels."""
        pipeline = Pipeline(
            network,
            self.diffusion,
            self.sampler,
            self.shape,
            guidance=self.guidance,
            num_classes=self.data.num_classes,
            device=fabric.device,
            autocast=fabric.autocast,
        )
        labelled = self.data.conditional or self.guidance.labelled
        labels = range(self.data.num_classes or 0) if labelled else None
        try:
            grid = preview_grid(fabric, pipeline, self.num_samples, labels)
        except Exception as error:
            if fabric.world_size > 1:
                raise  # the other processes would wait for this one's images
            logger.warning("No preview of step %d; the run continues: %s", step, one_line(error))
            return
        run.log_grid(step, grid)
