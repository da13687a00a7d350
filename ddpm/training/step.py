"""One step of Algorithm 1 of Ho et al. 2020, on one device's share of the batch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm.diffusion import NO_LABEL, GaussianDiffusion
from ddpm.images import normalize
from ddpm.randomness import StepNoise, mix, seed_device
from ddpm.runner.distributed.fsdp import norm_of
from ddpm.runner.execution import eager
from ddpm.training.ema import EMA

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None], Tensor]
QUARTERS = 4  # of 0..T-1, whose losses are told apart


class Figures(NamedTuple):
    """What a step says of itself, still on the device.

    Args:
        loss: of this rank's share, a scalar.
        grad_norm: of the gradient over all ranks, before it was clipped, a scalar.
        broken: whether the step was left out as not finite, a scalar, the same on all ranks.
        by_time: (2, QUARTERS): the sum of the images' losses for each quarter of 0..T-1, and how
            many images that were.
    """

    loss: Tensor
    grad_norm: Tensor
    broken: Tensor
    by_time: Tensor


@dataclass
class Step:
    """Images in, weights changed, loss and gradient norm out.

    A step whose loss or gradient is not finite on any rank changes neither the weights nor the
    optimizer's memory.

    Args:
        model, optimizer: as `fabric.setup` returned them.
        loss: (model, x_0, t, eps, label) -> the loss of each image, (B,).
        noise: draws what the n-th step needs of chance, for the global batch.
        rows: which rows of it are this rank's.
        flip: whether images may be mirrored.
        label_dropout: share of images that get the null class; None: all, no labels are fed.
        accumulate: in how many parts the share goes through the network.
        clip_grad_norm: largest global norm of the gradient; None: any.
        learning_rate: of the n-th step.
    """

    fabric: Fabric
    model: nn.Module
    optimizer: torch.optim.Optimizer
    diffusion: GaussianDiffusion
    loss: Loss
    ema: EMA
    noise: StepNoise
    rows: slice
    flip: bool
    label_dropout: float | None
    accumulate: int
    clip_grad_norm: float | None
    learning_rate: Callable[[int], float]

    def __call__(self, n: int, images: Tensor, label: Tensor) -> Figures:
        """The n-th step (n = 0, 1, ...) on uint8 images (B, C, H, W), labels (B,)."""
        # What the network itself draws (dropout) is a function of step and rank as well.
        seed_device(
            self.fabric.device, mix(self.noise.seed, f"dropout/{self.fabric.global_rank}", n)
        )
        x_0, t, eps, label = self.draw(n, images, label)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(n)
        loss, losses = self.backward(x_0, t, eps, label)
        grad_norm = self.clip()
        if self.diffusion.schedule is not None:
            self.schedule_backward(x_0, t, eps, label)
        broken = self.is_broken(loss, grad_norm)
        self.update(broken)
        self.optimizer.zero_grad()
        self.diffusion.refresh(host=False)
        self.ema.update(n)
        return Figures(loss, grad_norm, broken, by_time(losses, t, self.diffusion.T))

    def knobs(self, n: int) -> dict[str, float]:
        """What the n-th step took that changes on the way, for the log."""
        return {"train/lr": self.learning_rate(n), "train/ema_decay": self.ema.decay_at(n)}

    def draw(
        self, n: int, images: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x_0 (B, C, H, W) in [-1, 1], t (B,), eps like x_0, labels (B,) of the n-th step."""
        t, eps, flip, u = self.noise(n, self.rows)
        x_0 = normalize(images)
        if self.flip:
            x_0 = torch.where(flip[:, None, None, None], x_0.flip(-1), x_0)
        return x_0, t, eps, self.drop(label, u)

    @torch.no_grad()
    def broken_images(self, n: int, images: Tensor, label: Tensor) -> Tensor:
        """Which images of the global batch have a loss that is not finite, with the weights as
        they are: (B,), bool, the same on all ranks."""
        x_0, t, eps, label = self.draw(n, images, label)
        broken = torch.zeros(self.noise.batch_size, device=t.device)
        for i in range(len(t)):
            one = slice(i, i + 1)
            with self.fabric.autocast():
                loss = self.loss(
                    self.model.module,
                    x_0[one],
                    t[one],
                    eps[one],
                    None if label is None else label[one],
                )
            broken[self.rows.start + i] = ~torch.isfinite(loss).all()
        return (self.fabric.all_reduce(broken, reduce_op="sum") > 0).cpu()

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """What keeps the gradients of float16 in its range, where that is the precision."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def clip(self) -> Tensor:
        """Clip the network's gradient; its global norm before that, a scalar."""
        max_norm = self.clip_grad_norm or math.inf
        if self.scaler is None:
            norm = self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=max_norm, error_if_nonfinite=False
            )
            return norm_of(norm)
        # What Fabric does, too, but not for fused optimizers.
        self.scaler.unscale_(self.optimizer.optimizer)
        return nn.utils.clip_grad_norm_(self.model.parameters(), max_norm, error_if_nonfinite=False)

    def is_broken(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Whether a number of this step is not finite, on any rank: a scalar, bool."""
        numbers = [loss, grad_norm]
        # The norm is that of the network alone; a schedule's gradient is not clipped with it. Its
        # square is looked at, too: the optimizer's memory holds it.
        numbers += [p.grad.norm() for p in self.diffusion.parameters() if p.grad is not None]
        broken = ~torch.isfinite(torch.stack([x.float() for x in numbers])).all()
        if self.fabric.world_size > 1:
            broken = self.fabric.all_reduce(broken.float(), reduce_op="sum") > 0
        return broken

    def update(self, broken: Tensor) -> None:
        """Take the optimizer's step, unless the numbers are broken."""
        inner = self.optimizer.optimizer  # inside of Fabric's wrapper
        if self.scaler is not None:
            if broken:
                self.scaler.update()  # falls where `clip` met infinity; else only ends the step
            else:
                self.optimizer.step()
        elif self.skips_on_device(inner):
            inner.found_inf = broken.float()  # asked by its kernels: nobody waits for the device
            eager.take_step(inner)
        elif not broken:
            eager.take_step(inner)

    def skips_on_device(self, inner: torch.optim.Optimizer) -> bool:
        """Whether the optimizer can leave a step out without the CPU knowing."""
        return self.fabric.device.type == "cuda" and getattr(
            inner, "_step_supports_amp_scaling", False
        )

    def drop(self, label: Tensor, u: Tensor) -> Tensor | None:
        """Labels (B,) with the null class for a share of them, image by image."""
        if self.label_dropout is None:
            return None
        return torch.where(u < self.label_dropout, NO_LABEL, label)

    def backward(
        self, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Leave the gradients of the mean loss, part by part where memory is short: that loss, and
        the loss of each image (B,)."""
        means, losses = [], []
        labels = [None] * self.accumulate if label is None else label.chunk(self.accumulate)
        parts = [*(part.chunk(self.accumulate) for part in (x_0, t, eps)), labels]
        for i, part in enumerate(zip(*parts, strict=True), start=1):
            with self.fabric.no_backward_sync(self.model, enabled=i < self.accumulate):
                each = self.loss(self.model, *part)
                mean = each.mean() / self.accumulate
                self.fabric.backward(mean)
            means.append(mean.detach())
            losses.append(each.detach())
        return torch.stack(means).sum(), torch.cat(losses)

    def schedule_backward(self, x_0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None) -> None:
        """Leave the gradients of the variational bound in the schedule, and in nothing else.

        A pass of its own on every fourth image of the global batch: the loss that trains the
        network would only make the schedule easy. The network inside of Fabric's wrapper does it,
        for the wrapper would count it as a step.
        """
        parameters = list(self.diffusion.parameters())
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        chosen = [i for i, row in enumerate(range(self.rows.start, self.rows.stop)) if row % 4 == 0]
        images = -(-self.noise.batch_size // 4)  # of all ranks
        for part in torch.tensor(chosen, device=x_0.device, dtype=torch.int64).chunk(
            self.accumulate
        ):
            if len(part) == 0:
                continue
            labels = None if label is None else label[part]
            with self.fabric.autocast():
                bound = self.diffusion.schedule_loss(
                    self.model.module, x_0[part], t[part], eps[part], labels
                )
            share = len(part) * self.fabric.world_size / images
            for total, gradient in zip(
                gradients, torch.autograd.grad(share * bound, parameters), strict=True
            ):
                total += gradient
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = self.fabric.all_reduce(gradient, reduce_op="mean")


def by_time(losses: Tensor, t: Tensor, T: int) -> Tensor:
    """For each quarter of 0..T-1, the sum of the losses (B,) of the steps t (B,) in it, and their
    number: (2, QUARTERS). No atomic additions: the same bits each time."""
    mine = (t * QUARTERS // T)[:, None] == torch.arange(QUARTERS, device=t.device)
    sums = torch.where(mine, losses.float()[:, None], 0).sum(0)
    return torch.stack([sums, mine.sum(0).float()])


@dataclass(frozen=True)
class LearningRate:
    """The rate of the n-th step, n = 0, 1, ...: linear up, level, and down as 1 / n.

    It depends on the step alone, not on how many there will be: a run that is given more steps
    later is the longer run.

    Args:
        peak: the level.
        warmup_steps: the first so many rise from peak / warmup_steps.
        lr_decay_start: from this step n on peak * lr_decay_start / n; None: constant, as in the
            paper.
    """

    peak: float
    warmup_steps: int
    lr_decay_start: int | None

    def __call__(self, n: int) -> float:
        up = (n + 1) / max(self.warmup_steps, 1)
        down = (self.lr_decay_start or math.inf) / (n + 1)
        return self.peak * min(1, up, down)
