"""The variational bound on -log p(x_0) in bits per dimension: prior, steps and reconstruction.

Eq. 5 of Ho et al. 2020 (arXiv:2006.11239) for the whole chain of T steps. Most of it comes from the
first few steps, so that a few strata of t that are narrow there estimate it well.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ddpm.denoising import Model, network_output, predict, variance_bound
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.likelihood import prior_bits
from ddpm.limits.parts import check_limits
from ddpm.metrics.base import Material, Metric, Need, Score, to_csv
from ddpm.metrics.sets import Estimate
from ddpm.randomness import image_noise, mix

BATCH = 64
ALONE = 0.2  # share of the strata that hold one step each, from t = 0 on
VERSION = 1  # of the formula


def strata(T: int, steps: int | str) -> list[range]:
    """0..T-1 in at most `steps` parts: single steps at first, then parts of nearly equal length.
    With "all", or no more steps than that, every step is a part."""
    if steps == "all" or int(steps) >= T:
        return [range(t, t + 1) for t in range(T)]
    alone = max(1, round(ALONE * int(steps)))
    rest = int(steps) - alone
    ends = [alone + (T - alone) * i // rest for i in range(rest + 1)] if rest else [alone]
    return [range(t, t + 1) for t in range(alone)] + [range(a, b) for a, b in pairwise(ends)]


@dataclass(frozen=True)
class Terms:
    """The parts of the bound of N images, in bits per dimension; float64.

    Args:
        prior: KL(q(x_T | x_0) || N(0, I)), (N,).
        parts: of 0..T-1.
        steps: what the steps of each part add up to, (N, number of parts): -log p(x_0 | x_t) at
            t = 0, the KLs of the steps from t to t - 1 elsewhere. In a part of several steps one
            of them, drawn anew for each image, stands for all.
    """

    prior: Tensor
    parts: list[range]
    steps: Tensor

    @property
    def total(self) -> Tensor:
        """The bound of each image, (N,)."""
        return self.prior + self.steps.sum(1)


@torch.no_grad()
def bound(
    network: Model,
    diffusion: GaussianDiffusion,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    variance: str = "auto",
    steps: int | str = "all",
    seed: int = 0,
) -> Terms:
    """The bound of images, without gradients.

    Args:
        images: uint8 (N, C, H, W).
        labels: (N,), for a network that takes them.
        variance: of the steps back, as in `samplers.ddpm`; at t = 0, where the posterior has none,
            the fixed ones are the posterior's of t = 1, as in Ho et al.'s code.
        steps: number of network evaluations for each image, or "all".
        seed: of the noise, and of the steps that stand for others.
    """
    device, T = diffusion.betas.device, diffusion.T
    parts, prior = strata(T, steps), []
    terms = torch.empty(len(images), len(parts), dtype=torch.float64)
    last = torch.tensor(diffusion.alphas_cumprod_at(T - 1), dtype=torch.float64)
    for first in range(0, len(images), BATCH):
        rows = range(first, min(first + BATCH, len(images)))
        x_0 = diffusion.codec.encode(images[rows.start : rows.stop].to(device))
        label = None if labels is None else labels[rows.start : rows.stop].to(device)
        prior.append(prior_bits(x_0.cpu().double(), last))
        for number, part in enumerate(parts):
            t, eps = _drawn(part, rows, x_0, seed)
            x_t = diffusion.q_sample(x_0, t, eps)
            found = predict(diffusion, network_output(diffusion, network, x_t, t, label), x_t, t)
            fraction = _fraction(variance, found.fraction, t, x_t)
            term = variance_bound(diffusion, x_0, x_t, t, found.x_0, fraction)
            terms[rows.start : rows.stop, number] = len(part) * term.cpu().double()
    return Terms(torch.cat(prior), parts, terms)


def _drawn(part: range, rows: range, x_0: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A step of a part for each image, (B,), and noise like x_0; drawn by the CPU, so that they are
    the same on every device and in any batch."""
    seeds = [mix(seed, f"bound/{part.start}", row) for row in rows]
    noise = image_noise(seeds, torch.device("cpu"))(torch.empty(x_0.shape))
    # a digest as a random number: below 2^63, so its remainder is uniform for all that matters
    t = [part[mix(seed, f"bound/t/{part.start}", row) % len(part)] for row in rows]
    return torch.tensor(t, device=x_0.device), noise.to(x_0.device)


def _fraction(variance: str, learned: Tensor | None, t: Tensor, x_t: Tensor) -> Tensor:
    """Where the log variance lies between the posterior's (0) and the forward step's (1)."""
    if variance in ("auto", "learned") and learned is not None:
        return learned
    if variance == "learned":
        raise InputError(
            "metric.bound.variance=learned: the network was not trained with "
            "objective.learned_variance=true; choose auto."
        )
    large = (t > 0).float() if variance != "fixed_small" else torch.zeros_like(t).float()
    return large.reshape(-1, *[1] * (x_t.dim() - 1))


class Bound(Metric):
    """`bits_per_dim` and its parts, of held-out pictures; of training pictures where there are no
    others, which the score's reference says.

    Args:
        num_images: at most so many pictures, drawn by the seed.
        steps: network evaluations for each of them: "all", or fewer for an estimate by strata of t.
        variance: of the steps back; auto: learned if the network has one, else fixed_large.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"network"})

    def __init__(
        self, *, num_images: int = 256, steps: int | str = 100, variance: str = "auto"
    ) -> None:
        check_limits("metric.bound", num_images=num_images, steps=steps, variance=variance)
        self.num_images, self.steps, self.variance = num_images, steps, variance
        self.rows: list[dict[str, float]] = []

    def evaluations(self, T: int) -> int:
        return self.num_images * len(strata(T, self.steps))

    def measure(self, material: Material) -> Sequence[Score]:
        assert material.diffusion is not None
        assert material.network is not None
        pictures, reference = material.held_out, "held_out"
        if pictures is None:
            pictures, reference = material.train, "train"
        if len(pictures) < 2:
            raise InputError(f"metric=bound: needs 2 pictures, and there are {len(pictures)}.")
        generator = torch.Generator().manual_seed(mix(material.seed, "bound/pictures", 0))
        chosen = torch.randperm(len(pictures), generator=generator)[: self.num_images]
        labels = pictures.labels if material.labelled else None
        terms = bound(
            material.network,
            material.diffusion,
            pictures.images[chosen],
            None if labels is None else labels[chosen],
            variance=self.variance,
            steps=self.steps,
            seed=material.seed,
        )
        self.rows = list(table_rows(terms))
        named = {
            "bits_per_dim": terms.total,
            "bits_per_dim_prior": terms.prior,
            "bits_per_dim_steps": terms.steps[:, 1:].sum(1),
            "bits_per_dim_reconstruction": terms.steps[:, 0],
        }
        return [_score(name, values, reference) for name, values in named.items()]

    def tables(self) -> dict[str, str]:
        """The bits of each t, or of each part of 0..T-1."""
        return {"bound": to_csv(self.rows)}

    def passport(self) -> dict[str, object]:
        return {
            "name": "bound",
            "num_images": self.num_images,
            "steps": self.steps,
            "variance": self.variance,
            "version": VERSION,
        }


def table_rows(terms: Terms) -> Iterator[dict[str, float]]:
    """For each part of 0..T-1 the bits of all of its steps, and their standard error."""
    errors = terms.steps.std(0) / math.sqrt(len(terms.steps))
    for part, mean, error in zip(
        terms.parts, terms.steps.mean(0).tolist(), errors.tolist(), strict=True
    ):
        yield {"t_first": part.start, "t_last": part.stop - 1, "bits": mean, "error": error}


def _score(name: str, values: Tensor, reference: str) -> Score:
    """The mean over images, with an interval from their spread."""
    estimate = Estimate(values.mean().item(), values.std().item() / math.sqrt(len(values)))
    return estimate.score(name, values, reference, "bits")
