"""From a checkpoint to pictures: one PNG per seed, a grid of them, and how they came to be."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm import pretrained
from ddpm.diffusion import GaussianDiffusion
from ddpm.guidance.base import Guidance
from ddpm.images import enlarge, load_png, make_grid, save_gif
from ddpm.jobs.sampling import check_shares, mine, save_all, stopped, undrawn
from ddpm.pipeline import Pipeline, Sampler, in_turn
from ddpm.runner.distributed.signals import GracefulStop
from ddpm.runner.execution.run import Run
from ddpm.runner.terminal.progress import Progress

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
    guidance: Guidance,
    channels: int,
    image_size: int,
    weights: str,
    labels: Sequence[int] | None,
    num_samples: int,
    first_seed: int,
    batch_size: int,
    gif_seconds: float,
) -> None:
    """Write `samples/000000.png` ... named after their seeds, `grid.png` and `denoising.gif`, and
    `labels.json` where labels were asked for.

    conf/job/sample.yaml says what each knob means.
    """
    shape = (channels, image_size, image_size)
    pipeline = make_pipeline(run, fabric, model, diffusion, sampler, guidance, shape, weights)
    seeds = range(first_seed, first_seed + num_samples)
    every = [seeds[i : i + batch_size] for i in range(0, num_samples, batch_size)]
    batches = mine(every, fabric)

    def files(batch: Sequence[int]) -> list[Path]:
        films = [run.dir / "denoising.gif"] if run.leads and batch == batches[0] else []
        return [*(folder / file_name(seed) for seed in batch), *films]

    with (
        GracefulStop() as signals,
        run.begin(),
        Progress(sum(map(len, batches)), unit="image", enabled=run.leads) as progress,
    ):
        check_shares(run, fabric, len(every))
        run.say(f"weights  {weights} of {run.path}, step {run.step}")
        folder = run.dir / "samples"
        folder.mkdir(exist_ok=True)
        for number, batch in undrawn(batches, files, signals):
            wanted = in_turn(labels, batch, first_seed)
            if run.leads and number == 0:
                images, frames = animate(pipeline, batch, wanted)
                duration = round(1000 * gif_seconds / len(frames))
                save_gif(frames, run.dir / "denoising.gif", duration_ms=duration)
            else:
                images = pipeline.sample_seeds(batch, wanted)
            save_all(images, [folder / file_name(seed) for seed in batch])
            progress.reach(number * batch_size + len(batch))
            progress.show(number * batch_size + len(batch), f"seed {batch[-1]}")
        if stopped(run, fabric, signals):
            return
        if run.leads:
            write_labels(run.dir, labels, seeds)
            grid = enlarge(make_grid(load(folder, seeds[:GRID]), columns_of(labels)))
            run.log_grid(run.step, grid, name="grid")  # the local tracker writes grid.png


def make_pipeline(
    run: Run,
    fabric: Fabric,
    model: nn.Module,
    diffusion: GaussianDiffusion,
    sampler: Sampler,
    guidance: Guidance,
    shape: Sequence[int],
    weights: str,
) -> Pipeline:
    """The pipeline of the run's checkpoint on the run's device."""
    pretrained.load_weights_into(model, diffusion, run.state, weights, run.path)
    return Pipeline(
        pretrained.for_inference(model, fabric.device),
        diffusion.to(fabric.device),
        sampler,
        shape,
        guidance=guidance,
        num_classes=run.plan.config["data"]["num_classes"],
        device=fabric.device,
        autocast=fabric.autocast,
    )


def file_name(seed: int) -> str:
    return f"{seed:06d}.png"


def write_labels(folder: Path, labels: Sequence[int] | None, seeds: Sequence[int]) -> None:
    """Which label each file was drawn for, in `labels.json`, where labels were asked for."""
    if (asked := in_turn(labels, seeds, seeds[0])) is not None:
        names = {file_name(seed): label for seed, label in zip(seeds, asked, strict=True)}
        (folder / "labels.json").write_text(json.dumps(names, indent=0) + "\n")


def columns_of(labels: Sequence[int] | None) -> int | None:
    """As many columns as labels, so that each has its own, where that makes a grid."""
    return len(labels) if labels is not None and 2 < len(labels) <= 16 else None


def animate(
    pipeline: Pipeline, seeds: Sequence[int], labels: Sequence[int] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The images of these seeds, uint8 (B, C, H, W), and frames of the way of the first few.

    Frames are evenly spaced and between FRAMES and twice as many: whenever there are more, every
    second one goes, so that nobody needs to know how many steps the sampler takes.
    """
    frames: list[Tensor] = []
    stride, decode = 1, pipeline.diffusion.codec.decode
    for i, x_t in enumerate(pipeline.trajectory(seeds, labels)):
        if i % stride == 0:
            frames.append(enlarge(make_grid(decode(x_t[:ANIMATED]).cpu()), width=256))
            if len(frames) > 2 * FRAMES:
                frames, stride = frames[::2], 2 * stride
    images = decode(x_t).cpu()
    return images, [*frames, enlarge(make_grid(images[:ANIMATED]), width=256)]


def load(folder: Path, seeds: Sequence[int]) -> Tensor:
    """The pictures of these seeds, whichever rank drew them: uint8 (B, C, H, W)."""
    return torch.stack([load_png(folder / file_name(seed)) for seed in seeds])
