"""job=interpolate: a strip of images between two pictures (Ho et al. 2020, section 4.3)."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.data.base import ImageData
from ddpm.editing import interpolation
from ddpm.errors import InputError
from ddpm.images import Codec, enlarge, load_image, make_grid
from ddpm.jobs.sampling import PipelineParts, draw, read_picture
from ddpm.pipeline import Pipeline, without_gradients
from ddpm.randomness import image_noise
from ddpm.runner.execution.run import Run
from ddpm.runner.terminal.progress import Progress
from ddpm.samplers.base import Sampler

ROWS = 32  # of strip.png, at most
WIDTH = 1024  # of it, in pixels, about


def interpolate(
    *,
    run: Run,
    fabric: Fabric,
    pipeline: PipelineParts,
    data: ImageData,
    weights: str,
    images: Sequence[str] | None,
    indices: Sequence[int],
    t: int | None,
    num_mixtures: int,
    num_samples: int,
    first_seed: int,
    labels: Sequence[int] | None,
) -> None:
    """Write `samples/000000-0.png` ... named after seed and mixture, and `strip.png`: for each seed
    a row, from the first picture over the mixtures to the second. conf/job/interpolate.yaml
    explains the arguments.

    Raises:
        InputError: a picture cannot be read, or the data set has fewer images.
    """
    pair = find_pair(data, images, indices)
    t_max = pipeline.diffusion.T // 2 if t is None else t
    loaded = pipeline.load(run, fabric, weights)
    seeds = range(first_seed, first_seed + num_samples)

    def files(seed: int) -> list[Path]:
        return [run.dir / "samples" / name for name in names(seed, num_mixtures, loaded.suffix)]

    def row(number: int, seed: int, progress: Progress) -> Tensor:
        label = None if labels is None else labels[(seed - first_seed) % len(labels)]
        drawn = mixtures(loaded, pair, t_max, num_mixtures, seed, label)
        progress.reach(number + 1)
        progress.show(number + 1, f"seed {seed}")
        return drawn

    def finish() -> None:
        codec, suffix = loaded.diffusion.codec, loaded.suffix
        picture = strip(run.dir / "samples", pair, seeds[:ROWS], num_mixtures, codec, suffix)
        run.log_grid(run.step, picture, name="strip")

    notes = [
        f"weights  {weights} of {run.path}, step {run.step}",
        f"noise    up to step t={t_max} of T={pipeline.diffusion.T}",
    ]
    draw(run, fabric, seeds, files=files, images=row, finish=finish, notes=notes, unit="row")


def find_pair(data: ImageData, images: Sequence[str] | None, indices: Sequence[int]) -> Tensor:
    """The two pictures, files or images of the data set: uint8 (2, C, H, W).

    Raises:
        InputError: a file cannot be read, or the data set has fewer images.
    """
    if images is not None:
        return torch.stack([read_picture("job.images", path, data.read) for path in images])
    data.prepare()
    if max(indices) >= len(data):
        raise InputError(
            f"job.indices={list(indices)}: data={data.name} has the {len(data)} images 0 to "
            f"{len(data) - 1}."
        )
    return data.__getitems__(indices)[0]


def mixtures(
    pipeline: Pipeline, pair: Tensor, t: int, num_mixtures: int, seed: int, label: int | None
) -> Tensor:
    """The images between the two for the noise of a seed: uint8 (num_mixtures, C, H, W)."""
    assert isinstance(pipeline.sampler, Sampler)
    steps = interpolation.interpolate(
        pipeline.denoiser(pipeline.to_labels(None if label is None else [label] * num_mixtures)),
        pipeline.sampler,
        pipeline.diffusion.codec.encode(pair).to(pipeline.device),
        t,
        num_mixtures,
        image_noise([seed], pipeline.device),
    )
    x_0 = deque(without_gradients(steps), maxlen=1).pop()
    return pipeline.diffusion.codec.decode(x_0).cpu()


def names(seed: int, num_mixtures: int, suffix: str) -> list[str]:
    """The file names of a row."""
    digits = len(str(num_mixtures - 1))
    return [f"{seed:06d}-{i:0{digits}d}{suffix}" for i in range(num_mixtures)]


def strip(
    folder: Path,
    pair: Tensor,
    seeds: Sequence[int],
    num_mixtures: int,
    codec: Codec,
    suffix: str,
) -> Tensor:
    """The rows of these seeds, each between its two pictures: uint8 (C, H', W')."""
    files = [names(seed, num_mixtures, suffix) for seed in seeds]
    rows = [[load_image(folder / name) for name in row] for row in files]
    tiles = [tile for row in rows for tile in (pair[0], *row, pair[1])]
    return enlarge(make_grid(codec.show(torch.stack(tiles)), columns=num_mixtures + 2), WIDTH)
