"""The training loss on fixed held-out pictures, steps and noise, and its gap to training pictures.

With (x_0, t, eps) fixed, two networks differ by far more than their difference's error, and t is
stratified, as the loss depends on it more than on anything else.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ddpm.denoising import training_losses
from ddpm.diffusion import GaussianDiffusion
from ddpm.limits.parts import check_limits
from ddpm.metrics.base import Material, Metric, Need, Pictures, Score, to_csv
from ddpm.metrics.sets import Estimate
from ddpm.randomness import image_noise, mix

BATCH = 64
VERSION = 1  # of the formula

Batch = tuple[Tensor, Tensor | None]  # uint8 (B, C, H, W), labels (B,) or None


@dataclass(frozen=True)
class Draws:
    """The steps and the noise of n losses, and the pictures that they are computed on.

    Args:
        n: number of losses.
        T: steps of the process.
        seed: decides all of it.
    """

    n: int
    T: int
    seed: int = 0

    @property
    def t(self) -> Tensor:
        """One step of each n-th part of 0..T-1, rising: (n,), int64."""
        generator = torch.Generator().manual_seed(mix(self.seed, "loss/t", 0))
        place = torch.arange(self.n) + torch.rand(self.n, generator=generator, dtype=torch.float64)
        return (place * self.T / self.n).long().clamp(max=self.T - 1)

    def pictures(self, count: int) -> Tensor:
        """Positions among `count` pictures, (n,), int64; each as often as the others, up to one."""
        rounds = []
        for again in range(-(-self.n // count)):
            generator = torch.Generator().manual_seed(mix(self.seed, "loss/pictures", again))
            rounds.append(torch.randperm(count, generator=generator))
        return torch.cat(rounds)[: self.n]

    def noise(self, which: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Standard normal noise of these losses, (B, *shape); drawn by the CPU, so that it is the
        same on every device."""
        seeds = [mix(self.seed, "loss/noise", i) for i in which]
        return image_noise(seeds, torch.device("cpu"))(torch.empty(len(seeds), *shape))

    def losses(
        self,
        network: nn.Module | Callable[..., Tensor],
        diffusion: GaussianDiffusion,
        read: Callable[[list[int]], Batch],
        which: Tensor,
        positions: Tensor,
        batch: int = BATCH,
        loss: Callable[..., Tensor] = training_losses,
    ) -> Tensor:
        """The losses of these draws, float32 on the device of the process: (len(which),).

        Args:
            read: positions of pictures -> their batch.
            which: (m,) in 0..n-1.
            positions: of all n pictures, as `pictures` returns them.
            loss: (diffusion, network, x_0, t, eps, label) -> (B,).
        """
        device, losses, t = diffusion.betas.device, [], self.t
        for part in which.split(batch):
            images, labels = read(positions[part].tolist())
            x_0 = diffusion.codec.encode(images.to(device))
            eps = self.noise(part.tolist(), x_0.shape[1:]).to(device)
            label = None if labels is None else labels.to(device)
            with torch.no_grad():
                losses.append(loss(diffusion, network, x_0, t[part].to(device), eps, label))
        return torch.cat(losses).float()


def stratified(values: Tensor) -> Estimate:
    """The mean of values of which each is of a stratum of its own, in order: (n,).

    The error by collapsed strata: the squared difference of two neighbours has the mean of the sum
    of their variances, or more if the strata differ.
    """
    values = values.double()
    n, pairs = len(values), values[: len(values) // 2 * 2].view(-1, 2)
    variance = pairs.diff(dim=1).square().sum().item() / n**2 * n / max(1, pairs.numel())
    return Estimate(values.mean().item(), math.sqrt(variance) if n > 1 else math.nan)


def by_t(t: Tensor, T: int, bins: int, columns: dict[str, Tensor]) -> list[dict[str, float]]:
    """Means of losses (n,) in equal parts of 0..T-1, a row for each part that has any."""
    bins = min(bins, T)
    part, rows = t * bins // T, []
    for number in range(bins):
        inside = part == number
        if inside.any():
            first, last = -(-number * T // bins), -(-(number + 1) * T // bins) - 1
            row: dict[str, float] = {"t_first": first, "t_last": last, "n": int(inside.sum())}
            rows.append(row | {k: v[inside].double().mean().item() for k, v in columns.items()})
    return rows


class Loss(Metric):
    """`loss` of the network, `loss_gap` to as many training pictures with the same steps and noise,
    and `loss_raw` of the weights without averaging, where they are given.

    Args:
        num_images: losses to average; with fewer held-out pictures, these are used again with
            other steps and noise.
        bins: parts of 0..T-1 in the table.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"network", "held_out"})
    of_process = True

    def __init__(self, *, num_images: int = 512, bins: int = 16) -> None:
        check_limits("metric.loss", num_images=num_images, bins=bins)
        self.num_images, self.bins = num_images, bins
        self.rows: list[dict[str, float]] = []

    def evaluations(self, T: int) -> int:
        """Three for each loss: held-out, training, and with the weights without averaging."""
        return 3 * self.num_images

    def measure(self, material: Material) -> Sequence[Score]:
        diffusion, held_out = material.diffusion, material.held_out
        assert diffusion is not None
        assert material.network is not None
        assert held_out is not None
        draws = Draws(self.num_images, diffusion.T, material.seed)

        def losses(network: nn.Module, pictures: Pictures) -> Tensor:
            positions = draws.pictures(len(pictures))
            read = reader(pictures, labelled=material.labelled)
            each = draws.losses(network, diffusion, read, torch.arange(draws.n), positions)
            return each.cpu()

        columns = {"loss": losses(material.network, held_out)}
        if material.raw_network is not None:
            columns["loss_raw"] = losses(material.raw_network, held_out)
        columns["loss_train"] = losses(material.network, material.train)
        self.rows = by_t(draws.t, draws.T, self.bins, columns)
        columns["loss_gap"] = columns["loss"] - columns.pop("loss_train")
        # The groups that `Score.without` leaves out have all strata alike.
        return [
            stratified(values).score(name, values, "held_out") for name, values in columns.items()
        ]

    def tables(self) -> dict[str, str]:
        """Means of the losses in parts of 0..T-1."""
        return {"loss_by_t": to_csv(self.rows)}

    def passport(self) -> dict[str, object]:
        return {
            "name": "loss",
            "num_images": self.num_images,
            "bins": self.bins,
            "version": VERSION,
        }


def reader(pictures: Pictures, *, labelled: bool) -> Callable[[list[int]], Batch]:
    """Reads pictures by their positions, with labels if the network takes some."""
    labels = pictures.labels if labelled else None
    return lambda rows: (pictures.images[rows], None if labels is None else labels[rows])
