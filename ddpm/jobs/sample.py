"""From a checkpoint to pictures: one PNG per seed, a grid of them, and how they came to be."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm import checkpoint
from ddpm.console import Progress
from ddpm.diffusion import GaussianDiffusion
from ddpm.images import denormalize, enlarge, load_png, make_grid, save_gif, save_png
from ddpm.jobs.run import Run
from ddpm.pipeline import Pipeline, Sampler

GRID = 256  # images in grid.png, at most
ANIMATED = 16  # images in denoising.gif
FRAMES = 50  # of it, at least, where the sampler has as many steps


def sample(
    *,
    run: Run,
    fabric: Fabric,
    model: nn.Module,
    diffusion: GaussianDiffusion,
    sampler: Sampler,
    channels: int,
    image_size: int,
    weights: str,
    num_samples: int,
    first_seed: int,
    batch_size: int,
    gif_seconds: float,
) -> None:
    """Write `samples/000000.png` ... named after their seeds, `grid.png` and `denoising.gif`.

    conf/job/sample.yaml says what each knob means.
    """
    checkpoint.load_weights(model, run.state[weights], run.path)
    pipeline = Pipeline(
        model.to(fabric.device, memory_format=torch.channels_last).eval().requires_grad_(False),
        diffusion.to(fabric.device),
        sampler,
        (channels, image_size, image_size),
        device=fabric.device,
        autocast=fabric.autocast,
    )
    seeds = range(first_seed, first_seed + num_samples)
    mine = seeds[fabric.global_rank :: fabric.world_size]
    with run.begin(), Progress(len(mine), unit="image", enabled=run.leads) as progress:
        run.say(f"weights  {weights} of {run.path}, step {run.step}")
        folder = run.dir / "samples"
        folder.mkdir(exist_ok=True)
        for first in range(0, len(mine), batch_size):
            batch = mine[first : first + batch_size]
            if run.leads and first == 0:
                images, frames = animate(pipeline, batch)
                duration = round(1000 * gif_seconds / len(frames))
                save_gif(frames, run.dir / "denoising.gif", duration_ms=duration)
            else:
                images = pipeline.sample_seeds(batch)
            for seed, image in zip(batch, images, strict=True):
                save_png(image, folder / f"{seed:06d}.png")
            progress.advance(len(batch))
            progress.show(first + len(batch), f"seed {batch[-1]}")
        fabric.barrier()
        if run.leads:
            grid = enlarge(make_grid(load(folder, seeds[:GRID])))
            run.log_grid(run.step, grid, name="grid")  # the local tracker writes grid.png


def animate(pipeline: Pipeline, seeds: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """The images of these seeds, uint8 (B, C, H, W), and frames of the way of the first few.

    Frames are evenly spaced and between FRAMES and twice as many: whenever there are more, every
    second one goes, so that nobody needs to know how many steps the sampler takes.
    """
    frames: list[Tensor] = []
    stride = 1
    for i, x_t in enumerate(pipeline.trajectory(seeds)):
        if i % stride == 0:
            frames.append(enlarge(make_grid(denormalize(x_t[:ANIMATED]).cpu()), width=256))
            if len(frames) > 2 * FRAMES:
                frames, stride = frames[::2], 2 * stride
    images = denormalize(x_t).cpu()
    return images, [*frames, enlarge(make_grid(images[:ANIMATED]), width=256)]


def load(folder: Path, seeds: Sequence[int]) -> Tensor:
    """The pictures of these seeds, whichever rank drew them: uint8 (B, C, H, W)."""
    return torch.stack([load_png(folder / f"{seed:06d}.png") for seed in seeds])
