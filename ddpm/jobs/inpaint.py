"""job=inpaint: paint the white part of a mask anew (RePaint, Lugmayr et al. 2022)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddpm.data.base import ImageData
from ddpm.data.decode import upright_size
from ddpm.editing import repaint
from ddpm.errors import InputError, nearest
from ddpm.images import Codec, enlarge, make_grid
from ddpm.jobs.sampling import (
    GRID,
    PipelineParts,
    draw,
    load,
    paths,
    read_picture,
    write_labels,
)
from ddpm.pipeline import Pipeline, in_turn, split, without_gradients
from ddpm.runner.config.rules import AREAS
from ddpm.runner.execution.run import Run
from ddpm.runner.terminal.progress import Progress
from ddpm.samplers.base import Sampler

GREY = 128  # of the masked part in grid.png


def inpaint(
    *,
    run: Run,
    fabric: Fabric,
    pipeline: PipelineParts,
    data: ImageData,
    image: str,
    mask: str,
    weights: str,
    labels: Sequence[int] | None,
    resamples: int,
    jump_length: int,
    num_samples: int,
    first_seed: int,
    batch_size: int,
) -> None:
    """Write `samples/000000.png` ... named after their seeds, and `grid.png`: the picture, its
    known part, and the samples; `labels.json` if labels were asked for. conf/job/inpaint.yaml
    explains the arguments.

    Raises:
        InputError: picture or mask cannot be used.
    """
    picture = read_picture("job.image", image, data.read)
    area = find_mask(data, mask, image)
    loaded = pipeline.load(run, fabric, weights)
    steps = len(pipeline.sampler.timesteps(pipeline.diffusion))
    moves = repaint.path(steps, resamples, jump_length)
    seeds, folder = range(first_seed, first_seed + num_samples), run.dir / "samples"

    def images(number: int, batch: range, progress: Progress) -> Tensor:
        batch_labels = in_turn(labels, batch, first_seed)
        path = paint(loaded, picture, area, batch, batch_labels, resamples, jump_length)
        for done, x_t in enumerate(path, start=1 + number * len(moves)):
            x_0 = x_t  # at the end
            progress.reach(done)
            progress.show(done, f"seeds {batch[0]} to {batch[-1]}")
        return loaded.diffusion.codec.decode(x_0).cpu()

    def finish() -> None:
        write_labels(run.dir, labels, seeds, loaded.suffix)
        samples = load(folder, seeds[: GRID - 2], loaded.suffix)
        grid = grid_of(loaded.diffusion.codec, picture, area, samples)
        run.log_grid(run.step, enlarge(grid), name="grid")

    draw(
        run,
        fabric,
        split(seeds, batch_size),
        files=lambda batch: paths(folder, batch, loaded.suffix),
        images=images,
        finish=finish,
        notes=[
            f"weights  {weights} of {run.path}, step {run.step}",
            f"steps    {describe(moves, jump_length)}",
        ],
        units=lambda batches: len(batches) * len(moves),
    )


def find_mask(data: ImageData, mask: str, image: str) -> Tensor:
    """The mask of the pixels to paint: bool (1, H, W).

    Raises:
        InputError: the file cannot be read, is not as large as the image, or is all black.
    """
    named = mask in AREAS
    area = repaint.area(mask, data.image_size) if named else read_mask(data, mask, image)
    if not area.any():
        raise InputError(
            f"job.mask={mask}: has no white pixel in the part of the picture that is used. White "
            "is painted, black is kept."
        )
    return area


def read_mask(data: ImageData, mask: str, image: str) -> Tensor:
    """A mask file: bool (1, H, W).

    Raises:
        InputError: it cannot be read, or is not as large as the image.
    """
    hint = f"\njob.mask is a picture file, or one of {', '.join(AREAS)}."
    hint += nearest(Path(mask).name, AREAS)
    width, height = upright_size(Path(image))
    mask_size = read_picture("job.mask", mask, upright_size, hint)
    if mask_size != (width, height):
        raise InputError(
            f"job.mask={mask}: is {mask_size[0]}x{mask_size[1]} pixels, and job.image={image} is "
            f"{width}x{height}; both must have the same width and height."
        )
    return read_picture("job.mask", mask, data.read_mask)


def paint(
    pipeline: Pipeline,
    picture: Tensor,
    mask: Tensor,
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    resamples: int,
    jump_length: int,
) -> Iterator[Tensor]:
    """Yield the images of these seeds on the way to x_0, and x_0 at last: (B, C, H, W), float32."""
    x_T, randn = pipeline.noise(seeds)
    assert isinstance(pipeline.sampler, Sampler)
    steps = repaint.inpaint(
        pipeline.denoiser(pipeline.to_labels(labels)),
        pipeline.sampler,
        pipeline.diffusion.codec.encode(picture).to(pipeline.device),
        mask.to(pipeline.device),
        x_T,
        randn,
        resamples=resamples,
        jump_length=jump_length,
    )
    return without_gradients(steps)


def grid_of(codec: Codec, picture: Tensor, area: Tensor, samples: Tensor) -> Tensor:
    """The picture, the picture with the area to paint in grey, and the samples, as one image: uint8
    (C, H', W')."""
    shown = codec.show(torch.cat([torch.stack([picture, picture]), samples]))
    wide = torch.cat([area] * (shown.shape[-1] // area.shape[-1]), dim=-1)
    shown[1] = torch.where(wide, GREY, shown[1]).to(torch.uint8)
    return make_grid(shown)


def describe(moves: Sequence[tuple[int, int]], jump_length: int) -> str:
    """The number of steps, e.g. `"410 of the sampler, with 36 jumps back of 10"`."""
    jumps = sum(goal > level for level, goal in moves)
    return f"{len(moves) - jumps} of the sampler, with " + (
        f"{jumps} jumps back of {jump_length}" if jumps else "no jump back"
    )
