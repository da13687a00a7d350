"""From seeds to images: a network, a process and a sampler put together."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.diffusion import GaussianDiffusion, Prediction
from ddpm.errors import InputError
from ddpm.guidance.base import Guidance
from ddpm.guidance.none import Unguided
from ddpm.images import denormalize
from ddpm.randomness import image_noise

Sampler = Callable[..., Iterator[Tensor]]


class Pipeline:
    """Draws images. The image of a seed is the same in any batch.

    Args:
        model: (x_t (B, C, H, W), t (B,)) and, where it was trained on labels, label (B,) -> what
            its objective predicts.
        diffusion: the process the model was trained for.
        sampler: yields x_t from x_T down to x_0.
        shape: (C, H, W) of an image.
        guidance: how labels steer it; None: the network's own answer.
        num_classes: labels are 0 .. num_classes - 1; None: there are none.
        device: where model and diffusion are.
        autocast: opens the context in which the network runs.
    """

    def __init__(
        self,
        model: nn.Module,
        diffusion: GaussianDiffusion,
        sampler: Sampler,
        shape: Sequence[int],
        *,
        guidance: Guidance | None = None,
        num_classes: int | None = None,
        device: torch.device | str = "cpu",
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.model = model
        self.diffusion = diffusion
        self.sampler = sampler
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self.num_classes = num_classes
        self.guidance = (guidance or Unguided()).to(self.device)
        self.autocast = autocast

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        weights: str = "ema",
        device: torch.device | str | None = None,
    ) -> "Pipeline":
        """The pipeline of a training run: everything it needs is in the checkpoint.

        Args:
            path: a run folder (its newest whole checkpoint) or a checkpoint file.
            sampler: another one than the run's own, e.g. `DDIM(steps=20, eta=0)`.
            guidance: another one than the run's own, e.g. `ClassifierFree(scale=2)`.
            weights: "ema", or "model" for the weights without averaging.
            device: the GPU if there is one, else the CPU.

        Raises:
            InputError: the file is missing, damaged, or not a checkpoint of this program.
        """
        from ddpm.pretrained import load_network
        from ddpm.runner.config.build import (
            build,  # Hydra is not needed to use a pipeline made by hand
        )
        from ddpm.runner.distributed.fabric import fast_bf16

        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model, diffusion, hparams, _ = load_network(path, weights, device)
        data = hparams["data"]
        if guidance is None and "guidance" in hparams:
            guidance = build(hparams["guidance"], "guidance")
        guidance = guidance or Unguided()
        labelled = data.get("conditional", False) or guidance.labelled
        return cls(
            model,
            diffusion,
            sampler or build(hparams["sampler"], "sampler"),
            (data["channels"], data["image_size"], data["image_size"]),
            guidance=guidance,
            num_classes=data["num_classes"] if labelled else None,
            device=device,
            autocast=lambda: torch.autocast(device.type, torch.bfloat16, enabled=fast_bf16(device)),
        )

    def denoise(self, label: Tensor | None = None) -> Callable[[Tensor, int], Prediction]:
        """What the samplers ask, for classes (B,): (x_t (B, C, H, W), t) -> prediction."""

        def ask(x_t: Tensor, t: int) -> Prediction:
            steps = torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)
            return self.guidance(self._predict, self.diffusion, x_t, steps, label)

        return ask

    def to_labels(self, labels: Sequence[int] | None) -> Tensor | None:
        """Labels (B,), int64, on the device.

        Raises:
            InputError: one is no class of the data, or labels mean nothing here.
        """
        if labels is None:
            return None
        if self.num_classes is None:
            raise InputError("labels: this network knows none, and no classifier guides it.")
        labels = [int(label) for label in labels]
        if not labels or not all(0 <= label < self.num_classes for label in labels):
            raise InputError(f"labels={labels}: must be some of 0 to {self.num_classes - 1}.")
        return torch.tensor(labels, device=self.device)

    def trajectory(
        self, seeds: Sequence[int], labels: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        """Yield x_T and then what the sampler yields, last of all x_0: (B, C, H, W), float32.

        Image i starts from, and is given later noise by, a generator seeded with seeds[i]; it is to
        be of class labels[i].
        """
        randn_like = image_noise(seeds, self.device)
        x_T = randn_like(torch.empty(len(seeds), *self.shape, device=self.device))
        yield x_T
        denoise = self.denoise(self.to_labels(labels))
        yield from without_gradients(self.sampler(denoise, self.diffusion, x_T, randn_like))

    def sample_seeds(self, seeds: Sequence[int], labels: Sequence[int] | None = None) -> Tensor:
        """The images of these seeds, one label for each, in one batch: uint8 (B, C, H, W)."""
        *_, x_0 = self.trajectory(seeds, labels)
        return denormalize(x_0).cpu()

    def sample(
        self,
        num_samples: int = 16,
        *,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Images of the seeds `seed`, `seed` + 1, ..., of these classes in turn; None: no label.

        uint8 (num_samples, C, H, W).
        """
        if num_samples < 1 or batch_size < 1:
            raise ValueError(f"num_samples={num_samples}, batch_size={batch_size}: at least 1")
        self.to_labels(labels)
        seeds = range(seed, seed + num_samples)
        batches = [seeds[i : i + batch_size] for i in range(0, num_samples, batch_size)]
        return torch.cat(
            [self.sample_seeds(batch, in_turn(labels, batch, seed)) for batch in batches]
        )

    def _predict(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            return self.model(x_t, t) if label is None else self.model(x_t, t, label)


def in_turn(labels: Sequence[int] | None, seeds: Sequence[int], first: int) -> list[int] | None:
    """The label of each seed: labels[0] for the seed `first`, and so on in a circle."""
    return None if labels is None else [labels[(seed - first) % len(labels)] for seed in seeds]


def without_gradients(steps: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same, each step without autograd: a context must not span a yield."""
    while True:
        with torch.no_grad():
            x_t = next(steps, None)
        if x_t is None:
            return
        yield x_t
