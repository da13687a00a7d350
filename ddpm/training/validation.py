"""The held-out loss during training: the same pictures, steps and noise each time."""

import contextlib
import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm.data.base import ImageData
from ddpm.denoising import training_losses
from ddpm.diffusion import GaussianDiffusion
from ddpm.ema.base import EMA
from ddpm.errors import InputError, one_line
from ddpm.metrics.base import to_csv
from ddpm.metrics.loss import Batch, Draws, by_t
from ddpm.runner.distributed.fsdp import is_sharded
from ddpm.runner.distributed.reduce import all_reduce
from ddpm.runner.execution.run import Run
from ddpm.runner.safe_io import atomic

IMAGES, FEWEST = 512, 32  # losses to average
SHARE = 0.01  # of the time in training
LAST_SHARE = 0.05  # of a run that ends before its first validation is due
BINS = 16
TABLE = "loss_by_t.csv"


def held_out_of(run: Run, data: ImageData, metrics: str) -> ImageData | None:
    """The images to validate on; prints how many, or why there are none."""
    reason = "none, as data.holdout=0 or data.split is not train"
    try:
        if (held_out := data.held_out()) is not None:
            run.say(f"held out {len(held_out):,} images, for {metrics}")
            return held_out
    except InputError as error:
        reason = one_line(error)
    run.say(f"held out {reason}: no {metrics}")
    return None


def num_images(every: int, batch_size: int) -> int:
    """The number of losses to average: 512, or with small batches as many as take a hundredth of
    the training time, but at least 32.

    A loss needs three forward passes (of the average, of the weights, of a training picture), which
    take as long as a step takes for an image.
    """
    return min(IMAGES, max(FEWEST, int(SHARE * every * batch_size)))


def next_step(done: int, total: int, every: int, batch_size: int) -> int:
    """The step of the next validation after `done` steps; 0: none comes. There is one after the
    last step, too, unless it would take more than a twentieth of the run."""
    step = (done // every + 1) * every
    if step <= total:
        return step
    at_end = num_images(every, batch_size) <= LAST_SHARE * batch_size * total
    return total if at_end and done < total else 0


@dataclass
class Validation:
    """Measures the loss of the averaged and of the current weights on held-out pictures, and that
    of the averaged weights on as many training pictures. Draws no random number of training.

    Args:
        train, held_out: the data.
        every: steps between validations.
        batch_size: of training.
        total: steps of the run.
        labelled: whether the network takes labels.
        batch: pictures of a forward pass on this device.
    """

    fabric: Fabric
    diffusion: GaussianDiffusion
    train: ImageData
    held_out: ImageData
    every: int
    batch_size: int
    total: int
    labelled: bool
    batch: int
    rows: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draws = Draws(num_images(self.every, self.batch_size), self.diffusion.T)

    def next(self, done: int) -> int:
        """The step of the next validation after `done` steps; 0: none comes."""
        return next_step(done, self.total, self.every, self.batch_size)

    def __call__(self, step: int, model: nn.Module, ema: EMA) -> dict[str, float]:
        """Metrics after `step` steps. Collective: all ranks call it and get the same."""
        columns = {"loss": self.losses(ema.model, self.held_out)}
        with raw_weights(model, ema) as network:
            columns["loss_raw"] = self.losses(network, self.held_out)
        columns["loss_train"] = self.losses(ema.model, self.train)
        rows = by_t(self.draws.t, self.draws.T, BINS, columns)
        self.rows = [{"step": step} | row for row in rows]
        means = {name: losses.double().mean().item() for name, losses in columns.items()}
        means["loss_gap"] = means["loss"] - means.pop("loss_train")
        return {f"eval/{name}": mean for name, mean in means.items()}

    def losses(
        self,
        network: nn.Module,
        data: ImageData,
        loss: Callable[..., Tensor] = training_losses,
    ) -> Tensor:
        """All losses, in order: (n,), on the CPU. Each rank computes a part of them."""
        ranks, n = self.fabric.world_size, self.draws.n
        mine = torch.arange(self.fabric.global_rank, n + -n % ranks, ranks)
        positions = self.draws.pictures(len(data))

        def read(rows: list[int]) -> Batch:
            images, labels = data.__getitems__(rows)
            return images, labels if self.labelled else None

        with self.fabric.autocast():
            own = self.draws.losses(
                network, self.diffusion, read, mine.clamp(max=n - 1), positions, self.batch, loss
            )
        everything = own.new_zeros(n + -n % ranks)
        everything[mine.to(own.device)] = own
        return all_reduce(self.fabric, everything, "sum")[:n].cpu()

    def write(self, folder: Path) -> None:
        """Write the losses by t into the run's table, replacing those of this and of later steps.
        A full disk is ignored, as are damaged rows of the table."""
        file, step = folder / TABLE, self.rows[0]["step"]
        old = ""
        with contextlib.suppress(OSError):
            old = file.read_text(errors="replace")
        earlier = _rows_before(step, old)
        with contextlib.suppress(OSError):
            atomic.write(file, to_csv([*earlier, *self.rows]))


def _rows_before(step: float, table: str) -> list[dict[str, Any]]:
    """The rows of a table of losses by t that are of earlier steps."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(csv.Error):
        for row in csv.DictReader(io.StringIO(table)):
            with contextlib.suppress(KeyError, TypeError, ValueError):  # no step, or damaged
                if int(row["step"]) < step:
                    rows.append(row)
    return rows


@contextlib.contextmanager
def raw_weights(model: nn.Module, ema: EMA) -> Iterator[nn.Module]:
    """A network in evaluation mode with the weights that are in training.

    The network of the average holds them for this time: it is in evaluation mode already, and may
    be compiled. Sharded weights cannot be exchanged, so the network in training is used itself.
    """
    pairs = list(zip(ema.weights, ema.sources, strict=True))
    if any(is_sharded(weight) for weight in ema.weights):
        was_training = model.training
        model.eval()
        try:
            yield model
        finally:
            model.train(was_training)
        return
    _swap(pairs)
    try:
        yield ema.model
    finally:
        _swap(pairs)


def _swap(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for one, other in pairs:
        one.data, other.data = other.data, one.data
