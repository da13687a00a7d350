"""Randomness as a function of position, not of history.

The order of the images, the flips, the timesteps and the noise of step n depend on (seed, n) alone,
and the noise of a sample on its own seed. So a resumed run equals an uninterrupted one, a run on
several devices draws the same numbers as a run on one, and sample 37 is the same in any batch.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the default generators (used by dropout) of the CPU and of the current device.

    `torch.manual_seed` does the same for every kind of device and takes a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def mix(seed: int, stream: str, position: int) -> int:
    """The seed of the `position`-th draw of a named stream, by hashing all three."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # a generator's seed is a signed 64-bit integer


@dataclass(eq=False)
class Order(Sampler[list[int]]):
    """The indices of each batch from batch `start` on; every epoch is shuffled on its own.

    Sample number n of a run is entry n % N of epoch n // N, so an epoch may end in the middle of a
    batch, and no image is dropped. Batch k begins with sample k * batch_size; this process reads
    its `rows`.
    """

    num_images: int
    seed: int
    batch_size: int
    rows: slice
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.start, self.stop):
            yield self.images(batch)[self.rows]

    def images(self, batch: int) -> list[int]:
        """The indices of a whole batch, for all processes."""
        first = batch * self.batch_size
        entries = [divmod(n, self.num_images) for n in range(first, first + self.batch_size)]
        return [permutation(self.num_images, self.seed, epoch)[i] for epoch, i in entries]


@functools.lru_cache(maxsize=1)
def permutation(num_images: int, seed: int, epoch: int) -> list[int]:
    """The order of the images in an epoch."""
    generator = torch.Generator().manual_seed(mix(seed, "order", epoch))
    return torch.randperm(num_images, generator=generator).tolist()


@dataclass(eq=False)
class StepNoise:
    """All random numbers of a training step, drawn for the whole global batch.

    Every process draws the global batch and keeps its `rows`, so the numbers for an image do not
    depend on the number of devices.

    Args:
        shape: (C, H, W) of an image.
        timesteps: distribution of t, see `ddpm/timesteps`; None: uniform.
    """

    seed: int
    batch_size: int
    shape: Sequence[int]
    T: int
    device: torch.device
    timesteps: Callable[..., Tensor] | None = None

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device)

    def __call__(self, step: int, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """t (B,) in 0..T-1, eps (B, C, H, W) standard normal, flip (B,) bool, and u (B,), uniform
        in [0, 1), which decides whether a label is dropped."""
        g = self.generator.manual_seed(mix(self.seed, "step", step))
        device, size = g.device, (self.batch_size,)
        if self.timesteps is None:
            t = torch.randint(self.T, size, generator=g, device=device)
        else:
            t = self.timesteps(self.batch_size, self.T, device, g)
        flip = torch.rand(size, generator=g, device=device) < 0.5
        eps = torch.randn((*size, *self.shape), generator=g, device=device)
        u = torch.rand(size, generator=g, device=device)
        return t[rows], eps[rows], flip[rows], u[rows]

    def uniform_t(self, step: int, rows: slice, t: Tensor) -> Tensor:
        """Uniform steps for a loss that needs them: those of training, `t`, if they are uniform."""
        if self.timesteps is None or getattr(self.timesteps, "uniform", False):
            return t
        g = self.generator.manual_seed(mix(self.seed, "uniform_t", step))
        return torch.randint(self.T, (self.batch_size,), generator=g, device=g.device)[rows]


AT_ONCE = 16  # steps whose noise a GPU draws at once: starting a kernel takes longer than drawing
NUMBERS_AT_ONCE = 2**18  # at most, for an image


def image_noise(
    seeds: Sequence[int], device: torch.device, at_once: int | None = None
) -> Callable[[Tensor], Tensor]:
    """`randn_like` for a batch in which every image draws from a generator of its own.

    Args:
        at_once: the most steps whose noise is drawn at once, after the first one, which may be the
            only one; fewer for large images. Default: some on a GPU, whose numbers depend on it.
    """
    generators = [torch.Generator(device).manual_seed(mix(seed, "image", 0)) for seed in seeds]
    at_once = at_once or (AT_ONCE if device.type == "cuda" else 1)
    ahead: list[Tensor] = []
    first = True

    def randn_like(x: Tensor) -> Tensor:
        nonlocal first
        if not ahead:
            steps = 1 if first else max(1, min(at_once, NUMBERS_AT_ONCE // x[0].numel()))
            first = False
            noise = torch.empty(len(x), steps, *x.shape[1:], dtype=x.dtype, device=x.device)
            for row, generator in zip(noise, generators, strict=True):
                row.normal_(generator=generator)
            ahead.extend(noise.unbind(1)[::-1])
        return ahead.pop().contiguous()

    return randn_like
