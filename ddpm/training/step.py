"""One step of Algorithm 1 of Ho et al. 2020, on one device's share of the batch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from ddpm.augment.base import Augment
from ddpm.denoising import NO_LABEL
from ddpm.diffusion import GaussianDiffusion
from ddpm.ema.base import EMA
from ddpm.randomness import StepNoise, mix, seed_device
from ddpm.runner.distributed.cuda_graph import GradientGraph, can_replay
from ddpm.runner.distributed.fsdp import full_norm
from ddpm.runner.distributed.reduce import all_reduce, any_rank
from ddpm.runner.execution import eager
from ddpm.timesteps.base import Timesteps
from ddpm.training.lr import LearningRate
from ddpm.training.schedule import ScheduleTraining

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None], Tensor]
QUARTERS = 4  # of 0..T-1, whose losses are logged separately


class StepMetrics(NamedTuple):
    """Metrics of a step, still on the device.

    Args:
        loss: mean over this rank's images, a scalar.
        grad_norm: norm of the gradient over all ranks, before clipping, a scalar.
        nonfinite: whether the step was skipped as not finite, a scalar, the same on all ranks.
        by_time: (2, QUARTERS): for each quarter of 0..T-1 the sum of the images' losses, and the
            number of images.
    """

    loss: Tensor
    grad_norm: Tensor
    nonfinite: Tensor
    by_time: Tensor


@dataclass
class Step:
    """A training step: uint8 images in, weights updated, metrics out.

    A step whose loss or gradient is not finite on any rank changes neither the weights nor the
    optimizer's state.

    Args:
        model, optimizer: as returned by `fabric.setup`.
        loss: (model, x_0, t, eps, label) -> the loss of each image, (B,).
        noise: the random numbers of the n-th step, for the global batch.
        rows: this rank's rows of the global batch.
        flip: whether to mirror half of the images, at random.
        label_dropout: share of images that get the null class; None: no labels are used.
        accumulate: number of micro-batches of this rank's images.
        clip_grad_norm: maximum global norm of the gradient; None: no clipping.
        learning_rate: of the n-th step.
        schedule: trains a learned noise schedule; None: the schedule is fixed.
        augment: transforms x_0 and conditions the network on it. None: neither.
        graph: replays the passes through the network, see `replay`. None: they run as usual.
    """

    fabric: Fabric
    model: Any
    optimizer: Any
    diffusion: GaussianDiffusion
    loss: Loss
    ema: EMA
    noise: StepNoise
    rows: slice
    flip: bool
    label_dropout: float | None
    accumulate: int
    clip_grad_norm: float | None
    learning_rate: LearningRate
    schedule: ScheduleTraining | None = None
    augment: Augment | None = None
    graph: GradientGraph | None = None

    def __call__(self, n: int, images: Tensor, labels: Tensor) -> StepMetrics:
        """The n-th step (n = 0, 1, ...) on uint8 images (B, C, H, W) with labels (B,)."""
        # Random numbers inside the network (dropout) are a function of step and rank as well.
        seed_device(
            self.fabric.device, mix(self.noise.seed, f"dropout/{self.fabric.global_rank}", n)
        )
        x_0, t, eps, label = self.draw(n, images, labels)
        x_0, condition = self.augmented(n, x_0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(n)
        loss, losses = self.backward(x_0, t, eps, label, condition)
        grad_norm = self.clip()
        if self.schedule is not None:
            self.schedule.backward(x_0, self.noise.uniform_t(n, self.rows, t), eps, label)
        nonfinite = self.is_nonfinite(loss, grad_norm)
        self.update(nonfinite)
        self.learn(t, losses, nonfinite)
        self.optimizer.zero_grad()
        if self.schedule is not None:
            self.diffusion.refresh()
        self.ema.update(n)
        return StepMetrics(loss, grad_norm, nonfinite, by_time(losses, t, self.diffusion.T))

    def rates(self, n: int) -> dict[str, float]:
        """Learning rate and EMA decay of the n-th step, for the log."""
        return {"train/lr": self.learning_rate(n), "train/ema_decay": self.ema.decay_at(n)}

    def draw(
        self, n: int, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x_0 (B, C, H, W), t (B,), eps like x_0 and labels (B,) of the n-th step."""
        t, eps, flip, u = self.noise(n, self.rows)
        x_0 = self.diffusion.codec.encode(images)
        if self.flip:
            x_0 = torch.where(flip[:, None, None, None], x_0.flip(-1), x_0)
        return x_0, t, eps, self.drop_labels(labels, u)

    def augmented(self, n: int, x_0: Tensor) -> tuple[Tensor, Tensor | None]:
        """x_0 (B, C, H, W) of the n-th step transformed, and what was done: (B, A), or None."""
        if self.augment is None:
            return x_0, None
        generator = torch.Generator(x_0.device).manual_seed(mix(self.noise.seed, "augment", n))
        return self.augment(x_0, generator, self.rows, self.noise.batch_size)

    def drop_labels(self, labels: Tensor, u: Tensor) -> Tensor | None:
        """Labels (B,) with a random share replaced by the null class; None: no labels are used."""
        if self.label_dropout is None:
            return None
        return torch.where(u < self.label_dropout, NO_LABEL, labels)

    def backward(
        self,
        x_0: Tensor,
        t: Tensor,
        eps: Tensor,
        label: Tensor | None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the gradients of the mean loss, one micro-batch after the other.

        Returns that loss, and the loss of each image (B,), without the weights of importance
        sampling.
        """
        means, losses = [], []
        weights = self.timesteps.loss_weights(t) if self.timesteps is not None else None
        parts = [
            [None] * self.accumulate if part is None else part.chunk(self.accumulate)
            for part in (x_0, t, eps, label, condition, weights)
        ]
        for i, part in enumerate(zip(*parts, strict=True), start=1):
            with self.fabric.no_backward_sync(self.model, enabled=i < self.accumulate):
                mean, of_images = (self.graph or self.take_gradients)(*part)
            means.append(mean)
            losses.append(of_images)
        return torch.stack(means).sum(), torch.cat(losses)

    def take_gradients(
        self,
        x_0: Tensor,
        t: Tensor,
        eps: Tensor,
        label: Tensor | None,
        condition: Tensor | None,
        factor: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of a micro-batch. Returns its share of the mean loss, a scalar, and the
        loss of each image (B,)."""
        of_images = self.loss(conditioned(self.model, condition), x_0, t, eps, label)
        weighted = of_images if factor is None else of_images * factor
        mean = weighted.mean() / self.accumulate
        self.fabric.backward(mean)
        return mean.detach(), of_images.detach()

    def replay(self) -> None:
        """Replay the passes through the network as a CUDA graph where that is possible: on one GPU,
        in one pass, and without a gradient scaler or a schedule that learns."""
        network, weights = self.model.module, list(self.model.parameters())
        alone = isinstance(self.fabric.strategy, SingleDeviceStrategy)
        one_pass = self.accumulate == 1 and self.schedule is None and self.scaler is None
        if alone and one_pass and can_replay(network, self.fabric.device):
            self.graph = GradientGraph(self.take_gradients, weights)

    @property
    def timesteps(self) -> Timesteps | None:
        """The distribution of t, if it reweights losses and learns from them."""
        timesteps = self.diffusion.timesteps
        return timesteps if timesteps.learns else None

    def learn(self, t: Tensor, losses: Tensor, nonfinite: Tensor) -> None:
        """Let the distribution of t learn from the losses (B,) at t (B,) of all ranks."""
        if self.timesteps is None:
            return
        if self.fabric.world_size > 1:
            everything = torch.zeros(2, self.noise.batch_size, device=t.device)
            everything[:, self.rows] = torch.stack([t.float(), losses.float()])
            rows = all_reduce(self.fabric, everything, "sum")
            t, losses = rows[0].long(), rows[1]
        self.timesteps.update(t, losses, nonfinite)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler of float16, if that is the precision."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def clip(self) -> Tensor:
        """Clip the network's gradient; return its global norm before clipping, a scalar."""
        max_norm = self.clip_grad_norm or math.inf
        if self.scaler is None:
            norm = self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=max_norm, error_if_nonfinite=False
            )
            assert norm is not None
            return full_norm(norm)
        # Fabric does the same, but not for fused optimizers.
        self.scaler.unscale_(self.optimizer.optimizer)
        return nn.utils.clip_grad_norm_(self.model.parameters(), max_norm, error_if_nonfinite=False)

    def is_nonfinite(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Whether the loss or a gradient of this step is not finite on any rank: a scalar, bool."""
        numbers = [loss, grad_norm]
        # grad_norm is the network's; the schedule's gradient is not clipped with it. Its squares
        # must be finite, too: the optimizer's state holds them.
        numbers += [p.grad.norm() for p in self.diffusion.parameters() if p.grad is not None]
        nonfinite = ~torch.isfinite(torch.stack([x.float() for x in numbers])).all()
        return nonfinite if self.fabric.world_size == 1 else any_rank(self.fabric, nonfinite)

    def update(self, nonfinite: Tensor) -> None:
        """Take the optimizer's step, unless the numbers are not finite."""
        inner = self.optimizer.optimizer  # inside Fabric's wrapper
        if self.scaler is not None:
            if nonfinite:
                self.scaler.update()  # lowers the scale if `clip` met infinity
            else:
                self.optimizer.step()
        elif self.skips_on_device(inner):
            inner.found_inf = nonfinite.float()  # read by the kernels: the CPU does not wait
            eager.take_step(inner)
        elif not nonfinite:
            eager.take_step(inner)

    def skips_on_device(self, inner: torch.optim.Optimizer) -> bool:
        """Whether the optimizer's kernels can skip a step without the CPU knowing."""
        return self.fabric.device.type == "cuda" and getattr(
            inner, "_step_supports_amp_scaling", False
        )

    @torch.no_grad()
    def nonfinite_images(self, n: int, images: Tensor, labels: Tensor) -> Tensor:
        """Which images of the global batch have a loss that is not finite with the current weights:
        (B,), bool, the same on all ranks."""
        x_0, t, eps, label = self.draw(n, images, labels)
        x_0, condition = self.augmented(n, x_0)
        nonfinite = torch.zeros(self.noise.batch_size, device=t.device)
        for i in range(len(t)):
            image = slice(i, i + 1)
            label_i = None if label is None else label[image]
            with self.fabric.autocast():
                model = conditioned(
                    self.model.module, None if condition is None else condition[image]
                )
                loss = self.loss(model, x_0[image], t[image], eps[image], label_i)
            nonfinite[self.rows.start + i] = ~torch.isfinite(loss).all()
        return any_rank(self.fabric, nonfinite).cpu()


def conditioned(model: Any, condition: Tensor | None) -> Any:
    """The network, conditioned on the augmentation of its pictures (B, A)."""
    return model if condition is None else partial(model, augment=condition)


def by_time(losses: Tensor, t: Tensor, T: int) -> Tensor:
    """For each quarter of 0..T-1 the sum of the losses (B,) with t (B,) in it, and their number:
    (2, QUARTERS). Without atomic additions, so that the result is deterministic."""
    in_quarter = (t * QUARTERS // T)[:, None] == torch.arange(QUARTERS, device=t.device)
    sums = torch.where(in_quarter, losses.float()[:, None], 0).sum(0)
    return torch.stack([sums, in_quarter.sum(0).float()])
