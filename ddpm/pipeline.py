"""From seeds to images: a network, its diffusion process and a sampler."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.denoising import Denoiser, call_model
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.guidance.base import Guidance
from ddpm.guidance.none import Unguided
from ddpm.images import Images, suffix
from ddpm.limits.image_size import sides
from ddpm.randomness import image_noise
from ddpm.runner import own_folder
from ddpm.runner.distributed.cuda_graph import CudaGraphs, can_replay
from ddpm.samplers.base import Randn

Sampler = Callable[..., Iterator[Tensor]]


class Pipeline:
    """Draws samples. The image of a seed is the same in any batch, up to rounding.

    Args:
        model: the network, see `denoising.Model`.
        diffusion: the process that the model was trained on.
        sampler: yields x_t from x_T down to x_0.
        shape: (C, H, W) of x_0.
        guidance: how labels steer the prediction; None: the network's own.
        num_classes: labels are 0 .. num_classes - 1; None: no labels.
        device: of model and diffusion.
        autocast: context manager in which the network runs.
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
        # For other batches the network is not compiled again; None: any batch.
        self.compiled_batch: int | None = None
        # None: every call passes through the network's layers, in Python.
        self.graphs = CudaGraphs(model) if can_replay(model, self.device) else None

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        weights: str = "ema",
        device: torch.device | str | None = None,
        config_dir: str | Path | None = None,
    ) -> "Pipeline":
        """The pipeline of a training run, from its checkpoint alone.

        Args:
            path: a run folder (its newest whole checkpoint) or a checkpoint file.
            sampler: replaces the run's own, e.g. `DDIM(steps=20, eta=0)`.
            guidance: replaces the run's own, e.g. `ClassifierFree(scale=2)`.
            weights: "ema", or "model" for the weights without averaging.
            device: None: the GPU if available, else the CPU.
            config_dir: your own folder, if the run was trained with parts in it.

        Raises:
            InputError: the file is missing, damaged, or not a checkpoint of this program.
        """
        from ddpm.pretrained import for_inference, load_network
        from ddpm.runner.config.build import build  # Hydra is only needed here
        from ddpm.runner.distributed.fabric import fast_bf16

        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with own_folder.used(config_dir):
            model, diffusion, hparams, _ = load_network(path, weights, device)
            if guidance is None and "guidance" in hparams:
                guidance = build(hparams["guidance"], "guidance")
            sampler = sampler or build(hparams["sampler"], "sampler")
        data, guidance = hparams["data"], guidance or Unguided()

        def autocast() -> torch.autocast:
            return torch.autocast(device.type, torch.bfloat16, enabled=fast_bf16(device))

        labelled = data.get("conditional", False) or guidance.labelled
        return cls(
            for_inference(model, device, autocast),
            diffusion,
            sampler,
            (data["channels"], *sides(data["image_size"])),
            guidance=guidance,
            num_classes=data["num_classes"] if labelled else None,
            device=device,
            autocast=autocast,
        )

    @property
    def suffix(self) -> str:
        """The ending of the files of its images."""
        return suffix(self.shape[0], self.diffusion.codec.dtype)

    def denoiser(self, label: Tensor | None = None) -> Denoiser:
        """The network as samplers use it, for classes (B,) or none."""
        return Denoiser(self._predict, self.diffusion, self.guidance, label)

    def to_labels(self, labels: Sequence[int] | None) -> Tensor | None:
        """Labels (B,), int64, on the device.

        Raises:
            InputError: a label is not a class of the data, or the network uses no labels.
        """
        if labels is None:
            return None
        if self.num_classes is None:
            raise InputError(
                "labels: this network was trained without labels, and no classifier guides it."
            )
        labels = [int(label) for label in labels]
        if not labels or not all(0 <= label < self.num_classes for label in labels):
            raise InputError(f"labels={labels}: must be some of 0 to {self.num_classes - 1}.")
        return torch.tensor(labels, device=self.device)

    def noise(self, seeds: Sequence[int]) -> tuple[Tensor, Randn]:
        """x_T of these seeds, (B, C, H, W), and the source of the noise of further steps: each
        image takes all its noise from a generator of its own seed."""
        randn = image_noise(seeds, self.device)
        return randn(torch.empty(len(seeds), *self.shape, device=self.device)), randn

    def trajectory(
        self, seeds: Sequence[int], labels: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        """Yield x_T and the images after each step, x_0 last: (B, C, H, W), float32. Image i is
        that of seeds[i], of class labels[i]."""
        x_T, randn = self.noise(seeds)
        yield x_T
        denoiser = self.denoiser(self.to_labels(labels))
        yield from without_gradients(self.sampler(denoiser, x_T, randn))

    def sample_seeds(self, seeds: Sequence[int], labels: Sequence[int] | None = None) -> Tensor:
        """The images of these seeds, each with its label, in one batch: uint8 (B, C, H, W), or
        as the data are."""
        *_, x_0 = self.trajectory(seeds, labels)
        return self.diffusion.codec.decode(x_0).cpu()

    def sample(
        self,
        num_samples: int = 16,
        *,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        batch_size: int = 64,
    ) -> Images:
        """Images of the seeds `seed`, `seed` + 1, ...: uint8 (num_samples, C, H, W), a tensor that
        notebooks show as a picture.

        Args:
            labels: classes, used in turn; None: no labels.
        """
        if num_samples < 1 or batch_size < 1:
            raise ValueError(f"num_samples={num_samples}, batch_size={batch_size}: at least 1")
        self.to_labels(labels)
        batches = split(range(seed, seed + num_samples), batch_size)
        drawn = [self.sample_seeds(batch, in_turn(labels, batch, seed)) for batch in batches]
        return torch.cat(drawn).as_subclass(Images)

    def evaluations(self, label: int | None = None) -> int:
        """Network evaluations for one picture: classifier-free guidance needs two in a step, and so
        does Heun's method. Counted with a network that predicts zeros.

        Args:
            label: a class, where the network takes labels.
        """
        counted = copy.copy(self)
        counted.compiled_batch, counted.graphs = None, None
        channels = 2 if self.diffusion.objective.learned_variance else 1
        counter = counted.model = _Counter(channels)
        for _ in counted.trajectory([0], None if label is None else [label]):
            pass
        return counter.count

    @property
    def replays(self) -> bool:
        """Whether calls of the network are replayed now: not of another one that was put in its
        place, nor of a compiled one, nor with gradients."""
        same = self.graphs is not None and self.graphs.network is self.model
        return same and self.compiled_batch is None and not torch.is_grad_enabled()

    def _predict(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        # With guidance that makes two predictions, the number of rows is a multiple of the batch.
        eager = self.compiled_batch is not None and len(x_t) % self.compiled_batch != 0
        model = self.model.forward if eager else self.model
        if self.graphs is not None and self.replays:
            model = self.graphs
        with self.autocast():
            return call_model(model, x_t, t, label)


class _Counter(nn.Module):
    """Returns zeros of the right shape, and counts the pictures in all calls."""

    def __init__(self, times_channels: int) -> None:
        super().__init__()
        self.times_channels, self.count = times_channels, 0

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.count += len(x_t)
        return torch.zeros_like(x_t).repeat(1, self.times_channels, 1, 1)


def split(seeds: range, batch_size: int) -> list[range]:
    """Seeds, or other numbers, in batches."""
    return [seeds[i : i + batch_size] for i in range(0, len(seeds), batch_size)]


def in_turn(labels: Sequence[int] | None, seeds: Sequence[int], first: int) -> list[int] | None:
    """The label of each seed: labels[0] for the seed `first`, then the others in turn."""
    return None if labels is None else [labels[(seed - first) % len(labels)] for seed in seeds]


def without_gradients(steps: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same steps, each computed without autograd: a context must not span a yield."""
    while True:
        with torch.no_grad():
            x_t = next(steps, None)
        if x_t is None:
            return
        yield x_t
