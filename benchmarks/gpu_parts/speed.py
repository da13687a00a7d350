"""Images per second and memory of the network of Ho et al. 2020, at its batch size."""

import functools
import gc
import time
from collections.abc import Callable

import torch
from throughput import rate

from ddpm.hardware import memory
from ddpm.jobs.train import Train
from ddpm.pipeline import Pipeline
from ddpm.pretrained import ready
from gpu_parts.against_cpu import random_images
from gpu_parts.configuration import (
    MODES,
    SMALL,
    Mode,
    build_fabric,
    build_job,
    configuration,
    needs,
)
from gpu_parts.part import Figures, Machine, Part

WORDS = ("experiment=ho2020_cifar10", "sampler=respaced")
SECONDS = 3.0  # for each figure
STEPS = 10  # of sampling, in one call
COMPILING = 60.0  # seconds that must be left to compile a network of this size


def speed_parts(machine: Machine, names: list[str]) -> list[Part]:
    """Training and sampling in each of these modes."""
    return [
        Part(
            f"speed/{what}/{name}",
            functools.partial(measure, machine, check, MODES[name]),
            needs(MODES[name]),
            seconds=(COMPILING if MODES[name].compiled else 0) + 2 * SECONDS,
        )
        for what, check in {"train": training_call, "sample": sampling_call}.items()
        for name in names
    ]


def measure(
    machine: Machine,
    make: Callable[[Machine, tuple[str, ...], int, Mode], tuple[Callable[[], None], int]],
    mode: Mode,
    figures: Figures,
) -> None:
    """Images per second, peak memory, and how long the first call took.

    Float32 is measured as PyTorch comes and run.py uses it: convolutions on a GPU in TF32. On a CPU
    the network is a tiny one.
    """
    words = WORDS if machine.is_gpu else SMALL
    batch = configuration(*words)["job"]["batch_size"] if machine.is_gpu else 8
    free(machine)
    call, steps = make(machine, words, batch, mode)
    began = time.monotonic()
    call()
    figures["first call s"] = round(time.monotonic() - began, 1)
    calls = rate(call, machine.device, SECONDS if machine.is_gpu else 0.5)
    figures["batch"] = batch
    if machine.is_gpu and mode.precision == "32-true":
        figures["TF32 in convolutions"] = torch.backends.cudnn.allow_tf32
    if steps == 1:
        figures["images/s"] = round(calls * batch, 1)
    else:
        figures["network images/s"] = round(calls * batch * steps, 1)
        figures["ms a step"] = round(1000 / (calls * steps), 2)
    figures["memory MB"] = round(memory(machine.device))
    del call
    free(machine)


def training_call(
    machine: Machine, words: tuple[str, ...], batch: int, mode: Mode
) -> tuple[Callable[[], None], int]:
    """A training step."""
    job, fabric = build_job(words, mode, batch_size=batch), build_fabric(machine.hardware, mode)
    learned = job.make_learned(fabric)
    step = job.make_step(fabric, learned, slice(0, batch))
    images, labels = random_images(step)
    return lambda: step(0, images, labels), 1


def sampling_call(
    machine: Machine, words: tuple[str, ...], batch: int, mode: Mode
) -> tuple[Callable[[], None], int]:
    """Some steps of sampling."""
    steps = STEPS if machine.is_gpu else 2
    job = build_job((*words, f"sampler.steps={steps}"), mode)
    fabric = build_fabric(machine.hardware, mode)
    assert isinstance(job, Train)
    network = ready(job.net, fabric.device)
    if mode.compiled:
        network.compile()
    diffusion = job.diffusion.to(fabric.device)
    knobs = {"device": fabric.device, "autocast": fabric.autocast}
    pipeline = Pipeline(network, diffusion, job.sampler, job.shape, **knobs)
    return lambda: pipeline.sample_seeds(range(batch)), steps


def free(machine: Machine) -> None:
    """Give back the memory of the part before, and count from zero."""
    torch.compiler.reset()
    gc.collect()
    if machine.is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
