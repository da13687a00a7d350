"""The common part of the jobs that draw images: pipeline, batches, files, stopping and resuming.

An image depends on its seed and, in the last digits, on the images of its batch. So a batch of
which a file is missing is drawn again as a whole, and its files are those of an undisturbed run.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ddpm import pretrained
from ddpm.data.decode import OutOfReach, Unreadable
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.guidance.base import Guidance
from ddpm.images import is_whole, load_image, save_image
from ddpm.limits.image_size import Size, sides
from ddpm.models.gpu_kernels import has_gpu_compiler
from ddpm.models.group_norm import runs_own_kernels
from ddpm.pipeline import Pipeline, in_turn
from ddpm.runner.distributed.fabric import check_compiler
from ddpm.runner.distributed.reduce import any_rank
from ddpm.runner.distributed.signals import GracefulStop
from ddpm.runner.execution.run import Run
from ddpm.runner.runs import run_dir
from ddpm.runner.safe_io.failpoint import crashpoint
from ddpm.runner.terminal.progress import Progress
from ddpm.samplers.base import Sampler
from ddpm.training.compiling import compile_networks, may_compile

VISIBLE_AFTER = 30  # seconds that a file server may keep an old answer
GRID = 256  # images in grid.png, at most
# Compile only for at least so many evaluations of a full batch: it takes as long as a thousand.
MIN_EVALUATIONS = 5000

Batch = TypeVar("Batch")
Content = TypeVar("Content")


@dataclass
class PipelineParts:
    """The parts of a pipeline; see conf/job/sample.yaml."""

    model: nn.Module
    diffusion: GaussianDiffusion
    sampler: Sampler
    guidance: Guidance
    channels: int
    image_size: Size
    num_classes: int | None

    def load(self, run: Run, fabric: Fabric, weights: str) -> Pipeline:
        """The pipeline with the weights of the run's checkpoint, on the run's device.

        Args:
            weights: "ema" or "model".

        Raises:
            InputError: the checkpoint has no such weights, or they do not fit the network.
        """
        assert run.state is not None
        assert run.path is not None
        pretrained.load_weights_into(self.model, self.diffusion, run.state, weights, run.path)
        return Pipeline(
            pretrained.for_inference(self.model, fabric.device, fabric.autocast),
            self.diffusion.to(fabric.device),
            self.sampler,
            (self.channels, *sides(self.image_size)),
            guidance=self.guidance,
            num_classes=self.num_classes,
            device=fabric.device,
            autocast=fabric.autocast,
        )


def compile_if_it_pays(pipeline: Pipeline, mode: bool | str, batches: int, batch_size: int) -> None:
    """Compile the network for full batches: job.compile=true, false or "auto".

    Args:
        batches: full batches of a rank, at least.

    Raises:
        InputError: it is to be compiled, and the compiler is missing.
    """
    if mode is True:
        check_compiler(pipeline.device)
    elif mode is False or not pays_off(pipeline, batches):
        return
    compile_networks(pipeline.model, fallback=mode is not True)
    pipeline.compiled_batch = batch_size


def pays_off(pipeline: Pipeline, batches: int) -> bool:
    """Whether compiling for full batches is possible, and takes less time than it saves. Networks
    with this program's GPU kernels are about as fast without (docs/performance.md)."""
    possible = may_compile(pipeline.device) and has_gpu_compiler()
    if not possible or runs_own_kernels(pipeline.model, pipeline.device):
        return False
    return batches * pipeline.evaluations() >= MIN_EVALUATIONS


def draw(
    run: Run,
    fabric: Fabric,
    batches: Sequence[Batch],
    *,
    files: Callable[[Batch], Sequence[Path]],
    images: Callable[[int, Batch, Progress], Iterable[Tensor]],
    finish: Callable[[], None],
    notes: Sequence[str],
    units: Callable[[Sequence[Batch]], int] = len,
    unit: str = "step",
    needed: Callable[[int], Sequence[Path]] = lambda number: (),
) -> None:
    """Draw the images of all batches that are not in the run's folder yet, over all ranks.

    Args:
        files: of the images of a batch.
        images: draws a batch, given its number on this rank: (C, H, W) for each file.
        finish: called on rank zero when all files are there.
        notes: lines to print at the start.
        units: how far the progress bar goes for this rank's batches, counted in `unit`.
        needed: files beside the images without which a batch is drawn again.

    Raises:
        InputError: the processes do not share the run's folder.
    """
    own = rank_batches(batches, fabric)
    with (
        GracefulStop() as signals,
        run.begin(),
        Progress(units(own), unit=unit, enabled=run.leads) as progress,
    ):
        check_shared_folder(run, fabric, len(batches))
        for note in notes:
            run.say(note)
        (run.dir / "samples").mkdir(exist_ok=True)
        for number, batch in enumerate(own):
            if signals.wanted:
                break
            if not all(map(is_whole, (*files(batch), *needed(number)))):
                save_all(images(number, batch, progress), files(batch))
        if not stop_requested(run, fabric, signals) and run.leads:
            finish()


def rank_batches(batches: Sequence[Batch], fabric: Fabric) -> Sequence[Batch]:
    """This rank's batches. Batches are never split, so images do not depend on the number of
    ranks."""
    return batches[fabric.global_rank :: fabric.world_size]


def check_shared_folder(run: Run, fabric: Fabric, batches: int) -> None:
    """Check that all processes write into the folder that the first one made.

    Raises:
        InputError: another machine sees another folder, or none.
    """
    if fabric.world_size == 1:
        return
    run_id = fabric.broadcast(run.plan.hparams["run_id"])
    blind = torch.tensor(float(not _sees_folder(run.dir, run_id)), device=fabric.device)
    if any_rank(fabric, blind):
        raise InputError(
            f"output_dir={run.dir}: not all processes see the folder that the first one created. "
            "Each writes its images into it, so all machines must share it (NFS, Lustre, ...)."
        )
    if batches < fabric.world_size:
        run.say(
            f"note     {batches} batches for {fabric.world_size} processes: the others are idle; "
            "a smaller job.batch_size gives them work"
        )


def _sees_folder(folder: Path, run_id: str) -> bool:
    """Whether the folder is that of this run; on a network it may become visible late."""
    deadline = time.monotonic() + VISIBLE_AFTER
    while True:
        with contextlib.suppress(InputError):
            if run_dir.read_config(folder)["run_id"] == run_id:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def save_all(images: Iterable[Tensor], files: Iterable[Path]) -> None:
    """Write images, (C, H, W), each atomically."""
    for image, file in zip(images, files, strict=True):
        save_image(image, file)
        crashpoint("sample.saved")


def stop_requested(run: Run, fabric: Fabric, signals: GracefulStop) -> bool:
    """Whether a stop was requested on any rank; waits for all of them."""
    requested = bool(any_rank(fabric, torch.tensor(float(signals.wanted), device=fabric.device)))
    if requested:
        run.preempted(signals.received, "the same command resumes it")
    return requested


def file_name(seed: int, suffix: str) -> str:
    return f"{seed:06d}{suffix}"


def paths(folder: Path, seeds: Sequence[int], suffix: str) -> list[Path]:
    """The files of the images of these seeds."""
    return [folder / file_name(seed, suffix) for seed in seeds]


def load(folder: Path, seeds: Sequence[int], suffix: str) -> Tensor:
    """The images of these seeds, whichever rank drew them: (B, C, H, W)."""
    return torch.stack([load_image(path) for path in paths(folder, seeds, suffix)])


def write_labels(
    folder: Path, labels: Sequence[int] | None, seeds: Sequence[int], suffix: str
) -> None:
    """The label that each file was drawn for, in `labels.json`, if labels were asked for."""
    if (label_of_seed := in_turn(labels, seeds, seeds[0])) is not None:
        pairs = zip(seeds, label_of_seed, strict=True)
        names = {file_name(seed, suffix): label for seed, label in pairs}
        (folder / "labels.json").write_text(json.dumps(names, indent=0) + "\n")


def read_picture(key: str, path: str, read: Callable[[Path], Content], hint: str = "") -> Content:
    """The picture file that a key of the command line names, read by `read`.

    Raises:
        InputError: it cannot be read; names the key.
    """
    try:
        return read(Path(path))
    except Unreadable as error:
        raise InputError(f"{key}: cannot read {path!r} ({error.reason}).{hint}") from error
    except OutOfReach as error:
        raise InputError(f"{key}: {str(error).removeprefix('data: ')}") from error
