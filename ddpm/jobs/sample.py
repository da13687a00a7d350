"""job=sample: one PNG for each seed, a grid of them, and an animation of the denoising."""

from collections.abc import Sequence
from pathlib import Path

from lightning_fabric import Fabric
from torch import Tensor

from ddpm.images import enlarge, make_grid, save_gif
from ddpm.jobs.sampling import (
    GRID,
    PipelineParts,
    compile_if_it_pays,
    draw,
    load,
    paths,
    write_labels,
)
from ddpm.pipeline import Pipeline, in_turn, split
from ddpm.runner.execution.run import Run
from ddpm.runner.terminal.progress import Progress

ANIMATED = 16  # images in denoising.gif
FRAMES = 50  # frames in it, at least, if the sampler has so many steps


def sample(
    *,
    run: Run,
    fabric: Fabric,
    pipeline: PipelineParts,
    weights: str,
    labels: Sequence[int] | None,
    num_samples: int,
    first_seed: int,
    batch_size: int,
    compile: bool | str,
    gif_seconds: float,
) -> None:
    """Write `samples/000000.png` ... named after their seeds, `grid.png` and `denoising.gif`, and
    `labels.json` if labels were asked for. conf/job/sample.yaml explains the arguments.
    """
    loaded = pipeline.load(run, fabric, weights)
    seeds, folder = range(first_seed, first_seed + num_samples), run.dir / "samples"
    compile_if_it_pays(loaded, compile, num_samples // (batch_size * fabric.world_size), batch_size)

    def animation(number: int) -> list[Path]:
        return [run.dir / "denoising.gif"] if run.leads and number == 0 else []

    def images(number: int, batch: range, progress: Progress) -> Tensor:
        batch_labels = in_turn(labels, batch, first_seed)
        if animation(number):
            drawn, frames = animate(loaded, batch, batch_labels)
            duration = round(1000 * gif_seconds / len(frames))
            save_gif(frames, run.dir / "denoising.gif", duration_ms=duration)
        else:
            drawn = loaded.sample_seeds(batch, batch_labels)
        done = number * batch_size + len(batch)
        progress.reach(done)
        progress.show(done, f"seed {batch[-1]}")
        return drawn

    def finish() -> None:
        write_labels(run.dir, labels, seeds, loaded.suffix)
        drawn = loaded.diffusion.codec.show(load(folder, seeds[:GRID], loaded.suffix))
        grid = make_grid(drawn, columns_of(labels))
        run.log_grid(run.step, enlarge(grid), name="grid")  # the local tracker writes grid.png

    draw(
        run,
        fabric,
        split(seeds, batch_size),
        files=lambda batch: paths(folder, batch, loaded.suffix),
        images=images,
        finish=finish,
        notes=[f"weights  {weights} of {run.path}, step {run.step}"],
        units=lambda batches: sum(map(len, batches)),
        unit="image",
        needed=animation,
    )


def columns_of(labels: Sequence[int] | None) -> int | None:
    """A column for each of 3 to 16 labels; None: as many as `make_grid` chooses."""
    return len(labels) if labels is not None and 2 < len(labels) <= 16 else None


def animate(
    pipeline: Pipeline, seeds: Sequence[int], labels: Sequence[int] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The images of these seeds, (B, C, H, W), and frames of how the first few emerge.

    Frames are evenly spaced, FRAMES to twice as many: whenever there are more, every second one is
    dropped, so the number of steps of the sampler need not be known.
    """
    frames: list[Tensor] = []
    stride, codec = 1, pipeline.diffusion.codec
    for i, x_t in enumerate(pipeline.trajectory(seeds, labels)):
        if i % stride == 0:
            shown = codec.show(codec.decode(x_t[:ANIMATED]).cpu())
            frames.append(enlarge(make_grid(shown), width=256))
            if len(frames) > 2 * FRAMES:
                frames, stride = frames[::2], 2 * stride
    images = codec.decode(x_t).cpu()
    return images, [*frames, enlarge(make_grid(codec.show(images[:ANIMATED])), width=256)]
