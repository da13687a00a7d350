"""Training of a learned noise schedule (schedule=learned) beside the network."""

from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm.denoising import schedule_loss
from ddpm.diffusion import GaussianDiffusion
from ddpm.runner.distributed.reduce import all_reduce

EVERY = 4  # images of the global batch: every fourth one trains the schedule


@dataclass
class ScheduleTraining:
    """Gradients of the variational bound with respect to the schedule, and nothing else.

    This is a separate pass, because the loss of the network would only make the schedule easy.

    Args:
        model: the network inside Fabric's wrapper, which would count the pass as a step.
        rows: this rank's rows of the global batch.
        batch_size: of the global batch.
        accumulate: number of micro-batches.
    """

    fabric: Fabric
    model: nn.Module
    diffusion: GaussianDiffusion
    rows: slice
    batch_size: int
    accumulate: int

    def __post_init__(self) -> None:
        rows = range(self.rows.start, self.rows.stop)
        chosen = [i for i, row in enumerate(rows) if row % EVERY == 0]
        # On the device already: copying them at each step would make the host wait for it.
        indices = torch.tensor(chosen, dtype=torch.int64, device=self.fabric.device)
        self.parts = [part for part in indices.chunk(self.accumulate) if len(part)]
        self.num_images = -(-self.batch_size // EVERY)  # on all ranks

    def backward(self, x_0: Tensor, t: Tensor, eps: Tensor, labels: Tensor | None) -> None:
        """Set the gradients of the schedule's parameters, averaged over all ranks."""
        parameters = list(self.diffusion.parameters())
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for part in self.parts:
            label = None if labels is None else labels[part]
            with self.fabric.autocast():
                bound = self.loss(x_0[part], t[part], eps[part], label)
            share = len(part) * self.fabric.world_size / self.num_images
            of_part = torch.autograd.grad(share * bound, parameters)
            for gradient, addend in zip(gradients, of_part, strict=True):
                gradient += addend
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = all_reduce(self.fabric, gradient, "mean")

    def loss(self, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None) -> Tensor:
        """The variational bound in bits per dimension, a scalar."""
        return schedule_loss(self.diffusion, self.model, x_0, t, eps, label)
