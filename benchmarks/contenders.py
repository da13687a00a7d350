"""One network, trained and sampled three ways: by diffusers' own example, by diffusers tuned by
hand, and as a run of this program does it. benchmarks/against_diffusers.py and the throughput parts
of benchmarks/gpu_check.py measure them.

All start from the same weights and do the same work. A training step draws steps and noise, noises
images that are already on the device, evaluates the network, takes the mean squared error and its
gradient, clips that, and updates the weights and their moving average. A sampling step is one
network evaluation and one step of ancestral sampling.
"""

import copy
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from diffusers_loop import Diffusers
from gpu_parts.configuration import MODES, build_fabric
from settings import Setting
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ddpm.pipeline import Pipeline
from ddpm.pretrained import for_inference

STOCK, TUNED, OURS = "diffusers, stock", "diffusers, tuned", "ours"
STOCK_FP32 = "diffusers, stock in fp32"  # the example's default, whatever the others compute in
COMPILED = ", compiled"


class Contender(NamedTuple):
    """One of those that are compared.

    Args:
        train: takes a training step.
        sample: takes a sampling step, of one batch of images after the other.
        network: in training; (x_t (B, C, H, W), t (B,)) -> the predicted noise, or an output of
            diffusers that holds it.
    """

    name: str
    train: Callable[[], object]
    sample: Callable[[], object]
    network: nn.Module


def has_diffusers() -> bool:
    return importlib.util.find_spec("diffusers") is not None


def make(name: str, setting: Setting) -> Contender:
    """The contender of this name: one of those above, TUNED and OURS also with COMPILED added."""
    kind, compiled = name.removesuffix(COMPILED), name.endswith(COMPILED)
    if kind == OURS:
        return ours(name, setting, compiled)
    if kind == STOCK_FP32:
        setting = replace(setting, dtype="fp32")
    loop = Diffusers(setting, tuned=kind == TUNED, compiled=compiled)
    return Contender(name, loop.train, loop.sampling().__next__, loop.model)


def ours(name: str, setting: Setting, compiled: bool) -> Contender:
    """The step of a training run, and the steps of its sampler in `Pipeline`."""
    fabric = build_fabric(setting.hardware, MODES[setting.dtype])
    job = setting.job(compiled=compiled)
    learned = job.make_state(fabric)
    step = job.make_step(fabric, learned, slice(0, setting.batch))
    images = setting.pixels()
    labels = torch.zeros(setting.batch, dtype=torch.int64, device=setting.device)
    numbers = itertools.count()
    network = for_inference(
        copy.deepcopy(learned.ema.model), setting.device, fabric.autocast
    )
    if compiled:
        network.compile()
    pipeline = Pipeline(
        network,
        learned.diffusion,
        job.sampler,
        job.shape,
        device=setting.device,
        autocast=fabric.autocast,
    )
    return Contender(
        name,
        lambda: step(next(numbers), images, labels),
        trajectories(pipeline, setting.batch).__next__,
        learned.model,
    )


def trajectories(pipeline: Pipeline, batch: int) -> Iterator[Tensor]:
    """x_t after each network evaluation, of one batch of images after the other."""
    for first in itertools.count(step=batch):
        trajectory = pipeline.trajectory(range(first, first + batch))
        next(trajectory)  # x_T, for which the network was not needed
        yield from trajectory


def flops(contender: Contender, setting: Setting) -> float:
    """FLOP of a forward pass for one image; a multiplication and an addition are two. The counter
    does not know the fused attention of CPUs, so attention is counted as matrix products."""
    x = setting.pixels()[:1] / 127.5 - 1
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        # not called as a module, so that nothing is compiled for this
        contender.network.forward(x, torch.zeros(1, dtype=torch.int64, device=setting.device))
    return counter.get_total_flops()


def seconds_for(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds for so many calls, with one wait for the device at the end."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return time.perf_counter() - began


def rate(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Calls per second, measured over about so many seconds. The device is waited for at the end,
    not after every call: a run does not wait either."""
    first = seconds_for(call, 1, device)
    times = max(1, round(seconds / first))
    return times / seconds_for(call, times, device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


Round = dict[str, dict[str, float]]  # contender -> "training" and "sampling" -> images/s


def measure_round(contenders: Sequence[Contender], setting: Setting, seconds: float) -> Round:
    """Images per second of each, one after the other; sampling counts evaluated images."""
    return {
        contender.name: {
            what: setting.batch * rate(call, setting.device, seconds)
            for what, call in (("training", contender.train), ("sampling", contender.sample))
        }
        for contender in contenders
    }


class Spread(NamedTuple):
    """Over the rounds."""

    median: float
    least: float
    most: float


def images_per_second(rounds: Sequence[Round], name: str, what: str) -> Spread:
    return spread([one[name][what] for one in rounds])


def ratio(rounds: Sequence[Round], name: str, other: str, what: str) -> Spread:
    """How much faster one contender is than another, round by round."""
    return spread([one[name][what] / one[other][what] for one in rounds])


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))
