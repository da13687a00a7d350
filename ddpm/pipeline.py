"""From seeds to images: a network, a process and a sampler put together."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm import checkpoint
from ddpm.diffusion import GaussianDiffusion
from ddpm.images import denormalize
from ddpm.randomness import image_noise

Sampler = Callable[..., Iterator[Tensor]]


class Pipeline:
    """Draws images. The image of a seed is the same in any batch.

    Args:
        model: (x_t (B, C, H, W), t (B,)) -> eps_hat (B, C, H, W).
        diffusion: the process the model was trained for.
        sampler: yields x_t from x_T down to x_0.
        shape: (C, H, W) of an image.
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
        device: torch.device | str = "cpu",
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.model = model
        self.diffusion = diffusion
        self.sampler = sampler
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self.autocast = autocast

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        sampler: Sampler | None = None,
        weights: str = "ema",
        device: torch.device | str | None = None,
    ) -> "Pipeline":
        """The pipeline of a training run: everything it needs is in the checkpoint.

        Args:
            path: a run folder (its newest whole checkpoint) or a checkpoint file.
            sampler: another one than the run's own, e.g. `DDIM(steps=20, eta=0)`.
            weights: "ema", or "model" for the weights without averaging.
            device: the GPU if there is one, else the CPU.

        Raises:
            InputError: the file is missing, damaged, or not a checkpoint of this program.
        """
        from ddpm.build import build  # Hydra is not needed to use a pipeline made by hand
        from ddpm.hardware import fast_bf16

        file, state = checkpoint.find(path)
        hparams = state["hparams"]
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = build(hparams["model"], "model")
        checkpoint.load_weights(model, state[weights], file)
        model = model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        data = hparams["data"]
        return cls(
            model,
            build(hparams["diffusion"], "diffusion").to(device),
            sampler or build(hparams["sampler"], "sampler"),
            (data["channels"], data["image_size"], data["image_size"]),
            device=device,
            autocast=lambda: torch.autocast(device.type, torch.bfloat16, enabled=fast_bf16(device)),
        )

    def trajectory(self, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Yield x_T and then what the sampler yields, last of all x_0: (B, C, H, W), float32.

        Image i starts from, and is given later noise by, a generator seeded with seeds[i].
        """
        randn_like = image_noise(seeds, self.device)
        x_T = randn_like(torch.empty(len(seeds), *self.shape, device=self.device))
        yield x_T
        steps = self.sampler(self._predict, self.diffusion, x_T, randn_like)
        while True:
            with torch.no_grad():  # entered per step: a context must not span a yield
                x_t = next(steps, None)
            if x_t is None:
                return
            yield x_t

    def sample_seeds(self, seeds: Sequence[int]) -> Tensor:
        """The images of these seeds in one batch: uint8 (B, C, H, W)."""
        *_, x_0 = self.trajectory(seeds)
        return denormalize(x_0).cpu()

    def sample(self, num_samples: int = 16, *, seed: int = 0, batch_size: int = 64) -> Tensor:
        """Images of the seeds `seed`, `seed` + 1, ...: uint8 (num_samples, C, H, W)."""
        if num_samples < 1 or batch_size < 1:
            raise ValueError(f"num_samples={num_samples}, batch_size={batch_size}: at least 1")
        seeds = range(seed, seed + num_samples)
        batches = [seeds[i : i + batch_size] for i in range(0, num_samples, batch_size)]
        return torch.cat([self.sample_seeds(batch) for batch in batches])

    def _predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        with self.autocast():
            return self.model(x_t.contiguous(memory_format=torch.channels_last), t)
