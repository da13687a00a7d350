"""The kernels in C (ddpm/models/*.c) beside PyTorch's operations: single layers and whole steps.

    python benchmarks/cpu_kernels.py                   # two tables, with one thread
    python benchmarks/cpu_kernels.py --threads 2 --rounds 9

Each figure is a ratio of times that were measured in turn. Of layers it is the median over pairs of
calls (and the quartiles), of steps the median over the rounds (the least to the most). The sizes
are those of the networks of Ho et al. for CIFAR-10 and of the presets for small pictures.
Convolutions are computed by Winograd's algorithm with their bias; GroupNorm with a time embedding
before it and SiLU after it.
"""

import argparse
import contextlib
import functools
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from unittest.mock import patch

import contenders
import torch
import torch.nn.functional as F
from gpu_parts.report import device_name, table
from settings import Setting
from torch import Tensor

from ddpm.models import group_norm_cpu, winograd
from ddpm.models.cpu_kernels import cpu_kernels

CPU = torch.device("cpu")
CONVOLUTIONS = (  # channels to channels, side of the image, batch
    (128, 128, 32, 8),
    (256, 256, 16, 8),
    (256, 256, 8, 8),
    (64, 64, 32, 32),
    (64, 64, 8, 32),
    (32, 32, 16, 32),
)
GROUP_NORMS = (  # channels, groups, side of the image, batch
    (128, 32, 32, 8),
    (256, 32, 16, 8),
    (64, 8, 28, 64),
    (48, 8, 16, 64),
    (256, 32, 8, 8),
)
STEPS = {  # words of a command line -> batch
    ("experiment=laptop",): 32,
    ("model=unet", "data=mnist"): 64,
    ("model=resunet", "data=digits"): 64,
}
ALLOWED = {"convolutions": (True, False), "GroupNorm": (False, True), "both": (True, True)}

Layer = Callable[..., Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure of a round")
    parser.add_argument("--only", choices=["layers", "steps"])
    options = parser.parse_args(arguments)
    if cpu_kernels() is None:
        sys.exit("There are no kernels in C here: they need Linux and a C compiler.")
    torch.set_num_threads(options.threads)
    print(f"{device_name(CPU)}, torch {torch.__version__}, float32, threads: {options.threads}")
    if options.only != "steps":
        rows = [*convolutions(options), *group_norms(options)]
        print("\n".join(["", *table(["PyTorch / kernel", "forward", "and backward"], rows)]))
    if options.only != "layers":
        heads = ["without / with, by", "job", *ALLOWED]
        print("\n".join(["", *table(heads, list(steps(options)))]))


def convolutions(options: argparse.Namespace) -> Iterator[list[str]]:
    for channels, outputs, side, batch in CONVOLUTIONS:
        x, weight = nhwc(batch, channels, side, side), nhwc(outputs, channels, 3, 3)
        name = f"3x3, {channels} to {outputs}, {side}x{side}, {batch}"
        theirs = functools.partial(F.conv2d, padding=1)
        tensors = (x, weight, torch.randn(outputs))
        yield [name, *compared(theirs, winograd.conv2d, tensors, options)]


def group_norms(options: argparse.Namespace) -> Iterator[list[str]]:
    for channels, groups, side, batch in GROUP_NORMS:

        def theirs(x: Tensor, w: Tensor, b: Tensor, shift: Tensor, groups: int = groups) -> Tensor:
            return F.silu(F.group_norm(x + shift[..., None, None], groups, w, b))

        def ours(x: Tensor, w: Tensor, b: Tensor, shift: Tensor, groups: int = groups) -> Tensor:
            return group_norm_cpu.group_norm(x, groups, w, b, 1e-5, "silu", shift)

        x, shift = nhwc(batch, channels, side, side), torch.randn(batch, channels)
        tensors = (x, torch.randn(channels), torch.randn(channels), shift)
        name = f"GroupNorm, {channels}, {side}x{side}, {batch}"
        yield [name, *compared(theirs, ours, tensors, options)]


def nhwc(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def compared(
    theirs: Layer, ours: Layer, tensors: tuple[Tensor, ...], options: argparse.Namespace
) -> list[str]:
    """How many times as long PyTorch takes: forward without gradients, and with the backward
    pass."""
    parameters = [tensor.clone().requires_grad_() for tensor in tensors]
    dy = torch.randn_like(ours(*tensors))

    def forward(layer: Layer) -> Callable[[], object]:
        return torch.inference_mode()(lambda: layer(*tensors))

    def both(layer: Layer) -> Callable[[], object]:
        return lambda: torch.autograd.grad(layer(*parameters), parameters, dy)

    return [ratios(of(theirs), of(ours), options) for of in (forward, both)]


def ratios(
    theirs: Callable[[], object], ours: Callable[[], object], options: argparse.Namespace
) -> str:
    """How many times as long one call of theirs takes as the call of ours after it, which finds the
    memory that theirs has freed: the median (and the quartiles)."""

    def pair() -> tuple[float, float]:
        return contenders.seconds_for(theirs, 1, CPU), contenders.seconds_for(ours, 1, CPU)

    pair()
    calls = max(8, round(2 * options.rounds * options.seconds / sum(pair())))
    low, median, high = statistics.quantiles([x / y for x, y in (pair() for _ in range(calls))])
    return cell(median, low, high)


def steps(options: argparse.Namespace) -> Iterator[list[str]]:
    """Steps of training and sampling, with the kernels that are allowed beside one with none."""
    for words, batch in STEPS.items():
        ours = contenders.make(contenders.OURS, Setting(words, batch, "fp32", CPU))
        for job, call in (("training", ours.train), ("sampling", ours.sample)):
            rates: dict[str, list[float]] = {name: [] for name in ("none", *ALLOWED)}
            for _ in range(options.rounds):
                for name in rates:
                    with kernels(*ALLOWED.get(name, (False, False))):
                        call()
                        rates[name].append(contenders.rate(call, CPU, options.seconds))
            quotients = (
                contenders.spread([a / b for a, b in zip(rates[name], rates["none"], strict=True)])
                for name in ALLOWED
            )
            yield [f"{' '.join(words)}, {batch}", job, *(cell(*one) for one in quotients)]


@contextlib.contextmanager
def kernels(convolutions: bool, group_norm: bool) -> Iterator[None]:
    """Only these kernels, where a run would take them."""
    allowed = {winograd: convolutions, group_norm_cpu: group_norm}
    with contextlib.ExitStack() as stack:
        for module in (module for module, is_allowed in allowed.items() if not is_allowed):
            stack.enter_context(patch.object(module, "is_faster", return_value=False))
        yield


def cell(median: float, low: float, high: float) -> str:
    return f"{median:.2f}x ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    main()
