r"""The whole GPU check, for a machine that is there for a few minutes: does everything work on this
GPU, how fast is it, and what does a real run come to?

    python benchmarks/gpu_check.py --cifar cifar10-jpeg.tar.xz    # takes 525 s at most: --budget
    python benchmarks/gpu_check.py --only speed run/hardware=fsdp 'train/model=*/bf16'
    python benchmarks/gpu_check.py --device cpu                   # the same parts, smaller
    python benchmarks/gpu_check.py --list

Correct results:

- train/, sample/: a training step, and a few sampling steps, of every model, objective, schedule,
  weighting, optimizer, sampler, guidance and published set-up that conf/ holds, with every boolean
  of an option turned, in fp32 and bf16, eager and compiled, each against fp32 on the CPU;
- not finite/: a step that is not finite is left out, by the host and by the optimizer's kernels;
- graph/: steps and samples replayed as a CUDA graph, against the same without, to the bit;
- run/: real runs of run.py: kill -9 and resume, also with deterministic algorithms, to the bit
  (and which operations have none); job=sample; each strategy for several devices with one device;
  float16; torch.compile; a batch too large for the memory;
- memory/: the memory that a run says it expects, beside the peak that is then measured.

Speed, each part with the GPU for itself:

- speed/: training and sampling of Ho et al.'s network at 32x32 (batch 128 and 512), of CelebA's at
  64x64 and of one for 256x256, eager, and of two of them compiled: images per second, share of the
  card's dense bf16 peak (MFU: three forward passes for a training step), peak memory, beside
  diffusers tuned in the same way in the same process, if it is installed (contenders.py, also
  without a GPU: against_diffusers.py);
- loop/: the training loop of a run under torch's profiler: how long the GPU idles, how often the
  program waits for it, what reading and noise take, which kernels take longest;
- real run/: data=folder on the 50,000 pictures of CIFAR-10 for four minutes (--run-seconds): loss
  curve, samples (a PNG beside the JSON), images and steps per second from Enter to the end, the
  size of the checkpoint. Needs --cifar, a folder or an archive with train/<class>/*.jpg in it.
  Then 50,000 samples of it (--samples), of 15 network evaluations each, and their fd and kd by
  job=evaluate, with features=efficientnet where its weights are installed, else pixels: seconds for
  1,000 samples. This needs some minutes more: a call of its own, `--only 'real run'`.

No part ends the check: a failure is a line of the table, its traceback is in the JSON, which is
written anew after each part. What does not fit into the budget, or lacks something here, is
skipped, and the table says why. Targets stand beside the figures as met or not met; one that is not
met is no failure. The exit status is 1 if a part failed.

On a GPU, eager speed is measured first, while nothing else runs. Then the machine's cores are used
at once: the eager training steps run here; what compiles, the eager sampling and the programs run
in processes of their own beside it. When these have ended, compiled networks are measured one by
one. The real run comes last. Where the machine is lent for a shorter time, check in two calls:
`--only speed loop 'real run'`, and `--only train sample 'not finite' graph run memory`.

On a machine without a network
------------------------------
Needed is Python >= 3.11 with torch >= 2.11, torchvision, numpy, pillow, einops, safetensors,
scikit-learn, matplotlib, tqdm, PyYAML, packaging, fsspec, typing-extensions and
lightning-utilities; a C compiler, Triton and Python's headers for the compiled parts. wandb and the
usual data sets are not needed: the digits come with scikit-learn.

These wheels are to be carried along, all of them pure Python:

    hydra-core 1.3.8                  169 kB
    omegaconf 2.3.1                    80 kB
    antlr4-python3-runtime 4.9.3      145 kB   on the index only as source: `pip wheel` builds it
    lightning-fabric 2.6.6            257 kB   comes with pytorch-lightning, too, but not with
                                               lightning alone
    diffusers 0.42.1                 6356 kB   for the comparison alone; without it, ours is
    importlib-metadata 10.2.0          34 kB   measured alone

diffusers itself needs huggingface-hub (1.32 to 2), regex, requests, filelock, safetensors >= 0.8,
numpy and pillow; where transformers is installed, those are, too. UNet2DModel, DDPMScheduler and
EMAModel were imported with these wheels beside Python 3.12, torch 2.11, huggingface-hub 1.33 and
with or without transformers 5.17. Where there is a network, in the checkout:

    mkdir gpu && echo /gpu/ >> "$(git rev-parse --git-path info/exclude)"
    python -m pip wheel --no-deps -w gpu hydra-core==1.3.8 omegaconf==2.3.1 \
        antlr4-python3-runtime==4.9.3 lightning-fabric==2.6.6 diffusers==0.42.1 \
        importlib-metadata==10.2.0
    cp <...>/cifar10-jpeg.tar.xz gpu/      # 18.8 MB; 26 MB together

Take the checkout with the folder gpu/ to the GPU machine, and there, in the checkout:

    python3 -m pip install --no-index --no-deps --no-compile --find-links gpu --target /tmp/site \
        hydra-core omegaconf antlr4-python3-runtime lightning-fabric diffusers importlib-metadata
    PYTHONPATH=/tmp/site:. python3 benchmarks/gpu_check.py --cifar gpu/cifar10-jpeg.tar.xz \
        --output "${OUT:-out}/gpu_check.json"

Bring back gpu_check.json, gpu_check-grid.png and what was printed.
"""

import argparse
import contextlib
import faulthandler
import fnmatch
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from gpu_parts.against_cpu import sampling_parts, training_parts
from gpu_parts.aside import CACHE
from gpu_parts.check import Check, Plan, planned, share_cores
from gpu_parts.graphs import graph_parts
from gpu_parts.left_out import left_out_parts
from gpu_parts.memory import memory_parts
from gpu_parts.part import MARGIN, Machine, Part
from gpu_parts.program import Runs
from gpu_parts.programs import program_parts
from gpu_parts.real_run import real_run_parts
from gpu_parts.speed import speed_parts
from gpu_parts.step_loop import loop_parts

EAGER = ["fp32", "bf16"]
COMPILED = ["bf16 compiled", "fp32 compiled"]
BUDGET = 525.0
LATEST = 12.0  # seconds after the budget at which the check is ended by force


def all_parts(machine: Machine) -> list[Part]:
    """Every part, the most telling and the quickest first: the budget may end before the list."""
    runs = Runs(machine)
    parts = [
        *training_parts(machine, EAGER),
        *sampling_parts(machine, EAGER, runs.guides),
        *left_out_parts(machine),
        *graph_parts(machine),
        *program_parts(runs),
        *memory_parts(runs),
        *speed_parts(machine),
        *loop_parts(machine),
        *real_run_parts(machine),
    ]
    for mode in COMPILED:
        parts += training_parts(machine, [mode])
        parts += sampling_parts(machine, [mode], runs.guides)
    return parts


def select(parts: Sequence[Part], only: Sequence[str]) -> list[Part]:
    """The parts that these texts choose; all, if there are none.

    Raises:
        SystemExit: a text chooses none.
    """
    for text in only:
        if not any(chooses(text, part.name) for part in parts):
            sys.exit(f"--only {text}: chooses no part; --list shows their names.")
    return [part for part in parts if not only or any(chooses(t, part.name) for t in only)]


def chooses(text: str, name: str) -> bool:
    """Whether a text is a part's name, its beginning up to a slash, or a pattern for it."""
    return name == text or name.startswith(f"{text}/") or fnmatch.fnmatchcase(name, text)


def beside(parts: Sequence[Part]) -> list[list[Part]]:
    """Groups for processes of their own: the eager sampling, and what is compiled, by mode."""
    kinds = [(what, mode) for mode in COMPILED for what in ("train", "sample")]
    groups = [
        [p for p in parts if p.name.startswith(f"{what}/") and p.name.endswith(f"/{mode}")]
        for what, mode in kinds
    ]
    taken = {part.name for group in groups for part in group}
    drawn = [p for p in parts if p.name.startswith("sample/") and p.name not in taken]
    return [drawn, *groups]


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """End this process after so many seconds, with a traceback, also where it waits for a GPU that
    never answers. The JSON then holds what there was until then."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def compiler_cache(folder: Path) -> Iterator[None]:
    """A cache of torch.compile for this check and all its processes alone. In the one that all
    programs share, processes wait for each other's locks, and one that was killed while it compiled
    may have left half a file. (PyTorch sets the variable itself when it is imported.)"""
    before = os.environ.get(CACHE)
    os.environ[CACHE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE]
        else:
            os.environ[CACHE] = before


def device_of(name: str) -> torch.device:
    """The device to check.

    Raises:
        SystemExit: it is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "--device cuda: this machine has no GPU that PyTorch can use. --device cpu tries the "
            "parts on the CPU."
        )
    return torch.device(name)


def stop_once(number: int, frame: object) -> None:
    """End the check, with its table. `timeout` sends its signal twice: only the first counts."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all of it")
    parser.add_argument("--cifar", type=Path, help="the pictures of CIFAR-10: a folder, an archive")
    parser.add_argument("--run-seconds", type=float, default=240, help="for the real run")
    parser.add_argument("--samples", type=int, help="of the real run, to score; 50000 on a GPU")
    parser.add_argument("--only", nargs="+", default=[], help="names, or train, or train/model=*")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--in-order", action="store_true", help="no parts beside each other")
    parser.add_argument("--cache", type=Path, help="folder for torch.compile; default: a new one")
    parser.add_argument("--turn", type=Path, help=argparse.SUPPRESS)  # see Machine
    parser.add_argument("--list", action="store_true", help="only print the names of the parts")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, stop_once)
    device = torch.device("cpu") if options.list else device_of(options.device)
    if options.cifar and not options.cifar.exists():
        sys.exit(f"--cifar {options.cifar}: there is no such folder or archive.")
    options.output.absolute().parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        machine = Machine(
            device,
            Path(work),
            turn=options.turn,
            cifar=options.cifar and options.cifar.absolute(),
            run_seconds=options.run_seconds,
            samples=options.samples,
            output=options.output.absolute(),
            deadline=began + options.budget - MARGIN,
        )
        parts = select(all_parts(machine), options.only)
        if options.list:
            print("\n".join(part.name for part in parts))
            return 0
        check = Check(machine, options.output, options.budget)
        with (
            compiler_cache(options.cache or machine.work / "compiled"),
            watchdog(options.budget + LATEST),
        ):
            if machine.is_gpu and not options.in_order:
                share_cores()
                check(planned(parts, beside(parts)))
            else:
                check(Plan(parts))
    return int(any(result.status == "failed" for result in check.results))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    sys.exit(main())
