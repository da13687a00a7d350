"""job=train_classifier: train a classifier of noisy images, for guidance=classifier."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm.data.base import ImageData
from ddpm.diffusion import GaussianDiffusion
from ddpm.ema.base import EMA
from ddpm.errors import InputError, nearest
from ddpm.metrics.loss import by_t
from ddpm.randomness import StepNoise, mix
from ddpm.runner.distributed.reduce import all_reduce
from ddpm.training.best import LOSS, Best
from ddpm.training.intervals import due
from ddpm.training.loop import Loop
from ddpm.training.validation import BINS, Validation

SIGNS = {LOSS: -1, "eval/accuracy": 1}  # metrics of job.validate_every, 1: higher is better
IMAGES = 512  # at most, to measure the accuracy with
LEVELS = (0, 0.1, 0.25, 0.5, 0.75, 1)  # of noise, as fractions of T - 1


class ClassifierValidation(Validation):
    """Loss and accuracy of the averaged weights on held-out images with noise of all steps, and
    their differences from those on training images."""

    def __call__(self, step: int, model: nn.Module, ema: EMA) -> dict[str, float]:
        """Metrics after `step` steps. Collective: all ranks call it and get the same."""

        def of(data: ImageData) -> dict[str, Tensor]:
            kinds = {"loss": cross_entropy, "accuracy": correct}
            return {name: self.losses(ema.model, data, kind) for name, kind in kinds.items()}

        columns, seen = of(self.held_out), of(self.train)
        rows = by_t(self.draws.t, self.draws.T, BINS, columns)
        self.rows = [{"step": step} | row for row in rows]
        metrics: dict[str, float] = {}
        for name, values in columns.items():
            mean, trained = (part.double().mean().item() for part in (values, seen[name]))
            metrics |= {f"eval/{name}": mean, f"eval/{name}_gap": mean - trained}
        return metrics


@dataclass(kw_only=True, eq=False)
class TrainClassifier(Loop):
    """Minimise the cross-entropy on images with noise of uniformly drawn steps (Dhariwal & Nichol
    2021, arXiv:2105.05233, section 4). conf/job/train_classifier.yaml explains the arguments.
    """

    label_dropout = 0.0  # all labels are needed
    validation = ClassifierValidation
    validated = ", ".join(SIGNS)

    evaluate_every: int | None
    validate_every: int | None = field()  # required: without the default of `Loop`
    keep_best: str | None
    patience: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_best not in (*SIGNS, None):
            raise InputError(
                f"job.keep_best={self.keep_best}: a classifier has {', '.join(SIGNS)}."
                f"{nearest(str(self.keep_best), SIGNS)}"
            )

    def loss(
        self, model: nn.Module, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None
    ) -> Tensor:
        return cross_entropy(self.diffusion, model, x_0, t, eps, label)

    def make_best(self) -> Best:
        return Best(self.keep_best, self.patience, SIGNS[self.keep_best or LOSS])

    def is_eval_step(self, step: int) -> bool:
        return due(step, self.evaluate_every)

    def eval_batch(self, fabric: Fabric) -> int:
        return -(-min(len(self.data), IMAGES) // fabric.world_size)

    @torch.no_grad()
    def evaluate(self, fabric: Fabric, network: nn.Module) -> dict[str, float]:
        """The accuracy on fixed training images at some levels of noise; each rank evaluates a
        part of them."""
        count = min(len(self.data), IMAGES)
        generator = torch.Generator().manual_seed(mix(self.seed, "accuracy", 0))
        chosen = torch.randperm(len(self.data), generator=generator)[:count].tolist()
        rows = slice(fabric.global_rank, None, fabric.world_size)
        mine = self.data.__getitems__(chosen[rows])
        images, labels = (part.to(fabric.device) for part in mine)
        noise = StepNoise(self.seed, count, self.shape, self.diffusion.T, fabric.device)
        _, eps, _, _ = noise(0, rows)
        accuracies = {}
        for level in LEVELS:
            step = round(level * (self.diffusion.T - 1))
            t = torch.full_like(labels, step)
            x_t = self.diffusion.q_sample(self.diffusion.codec.encode(images), t, eps)
            with fabric.autocast():
                right = (network(x_t, t).argmax(1) == labels).sum().float()
            accuracies[f"eval/accuracy_t{step}"] = all_reduce(fabric, right, "sum").item() / count
        return accuracies


def cross_entropy(
    diffusion: GaussianDiffusion,
    model: nn.Module,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    label: Tensor | None,
) -> Tensor:
    """The loss of each image after t steps of noise: (B,)."""
    assert label is not None
    logits = model(diffusion.q_sample(x_0, t, eps), t).float()
    return F.cross_entropy(logits, label, reduction="none")


def correct(
    diffusion: GaussianDiffusion,
    model: nn.Module,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    label: Tensor | None,
) -> Tensor:
    """1 for each image whose class is found after t steps of noise, else 0: (B,)."""
    return (model(diffusion.q_sample(x_0, t, eps), t).argmax(1) == label).float()
