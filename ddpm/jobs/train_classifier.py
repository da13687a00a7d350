"""job=train_classifier: train a classifier of noisy images, for guidance=classifier."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm.randomness import StepNoise, mix
from ddpm.training.intervals import due
from ddpm.training.loop import Loop

IMAGES = 512  # at most, to measure the accuracy with
LEVELS = (0, 0.1, 0.25, 0.5, 0.75, 1)  # of noise, as fractions of T - 1


class TrainClassifier(Loop):
    """Minimise the cross-entropy on images with noise of uniformly drawn steps (Dhariwal & Nichol
    2021, arXiv:2105.05233, section 4). conf/job/train_classifier.yaml explains the arguments.
    """

    label_dropout = 0.0  # all labels are needed

    def __init__(self, *, evaluate_every: int | None, **loop: Any) -> None:
        super().__init__(**loop)
        self.evaluate_every = evaluate_every

    def loss(
        self, model: nn.Module, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None
    ) -> Tensor:
        assert label is not None
        logits = model(self.diffusion.q_sample(x_0, t, eps), t).float()
        return F.cross_entropy(logits, label, reduction="none")

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
            if fabric.world_size > 1:
                right = fabric.all_reduce(right, reduce_op="sum")
            accuracies[f"eval/accuracy_t{step}"] = right.item() / count
        return accuracies
