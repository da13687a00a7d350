"""Does everything work on this GPU? A smoke test for a machine that is there for a few minutes.

    python benchmarks/gpu_check.py                        # under five minutes on an H100
    python benchmarks/gpu_check.py --device cpu           # the same parts, smaller, on the CPU
    python benchmarks/gpu_check.py --only speed run/hardware=fsdp 'train/model=*/bf16'
    python benchmarks/gpu_check.py --list

It runs

- train/, sample/: a training step, and a few sampling steps, of every model, objective, schedule,
  weighting, optimizer, sampler, guidance and published set-up that conf/ holds, with every boolean
  of an option turned, in fp32 and bf16, eager and compiled, each against fp32 on the CPU;
- not finite/: a step that is not finite is left out, by the host and by the optimizer's kernels;
- run/: real runs of run.py: kill -9 and resume, job=sample, each strategy for several devices with
  one device, float16, torch.compile, a batch too large for the memory;
- speed/: images per second and peak memory of the network of Ho et al. 2020 at batch 128.

No part ends the check: a failure is a line of the table, its traceback is in the JSON, which is
written anew after each part. What does not fit into the budget, or lacks something here, is
skipped, and the table says why. The exit status is 1 if a part failed.

On a machine without a network
------------------------------
Needed is Python >= 3.11 with torch >= 2.11, torchvision, numpy, pillow, einops, safetensors,
scikit-learn, matplotlib, tqdm, PyYAML, packaging, fsspec, typing-extensions and
lightning-utilities; a C compiler, Triton and Python's headers for the compiled parts. wandb and the
data sets are not needed: the digits come with scikit-learn.

These wheels are to be carried along, all of them pure Python, 0.7 MB together:

    hydra-core 1.3.8                  169 kB
    omegaconf 2.3.1                    80 kB
    antlr4-python3-runtime 4.9.3      145 kB   on the index only as source: `pip wheel` builds it
    lightning-fabric 2.6.6            257 kB   comes with pytorch-lightning, too, but not with
                                               lightning alone

where there is a network:

    python -m pip wheel --no-deps -w wheels hydra-core==1.3.8 omegaconf==2.3.1 \\
        antlr4-python3-runtime==4.9.3 lightning-fabric==2.6.6

and on the GPU machine, in the checkout:

    python -m pip install --no-index --no-deps --find-links wheels --target site \\
        hydra-core omegaconf antlr4-python3-runtime lightning-fabric
    PYTHONPATH=site:. python benchmarks/gpu_check.py --output gpu_check.json
"""

import argparse
import fnmatch
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from gpu_parts.against_cpu import sampling_parts, training_parts
from gpu_parts.left_out import left_out_parts
from gpu_parts.part import MARGIN, Machine, Part, Result, run_part
from gpu_parts.programs import Program, Runs, program_parts
from gpu_parts.report import tables, write_json
from gpu_parts.speed import speed_parts

EAGER = ["fp32", "bf16"]
COMPILED = ["fp32 compiled", "bf16 compiled"]


def all_parts(machine: Machine) -> list[Part]:
    """Every part, the most telling and the quickest first: the budget may end before the list."""
    runs = Runs(machine)
    compiled = training_parts(machine, COMPILED)
    models = [part for part in compiled if part.name.startswith("train/model=")]
    return [
        *training_parts(machine, EAGER),
        *sampling_parts(machine, EAGER, runs.classifier),
        *left_out_parts(machine),
        *program_parts(runs),
        *speed_parts(machine, EAGER),
        *speed_parts(machine, ["bf16 compiled"]),
        *models,
        *(part for part in compiled if part not in models),
        *sampling_parts(machine, COMPILED, runs.classifier),
    ]


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


def check(parts: Sequence[Part], machine: Machine, budget: float, output: Path) -> list[Result]:
    """Run the parts one after the other, print and write what came of them, and return it.

    The results so far are printed also when the check is interrupted.
    """
    began = time.monotonic()
    results: list[Result] = []
    try:
        if machine.is_gpu:  # it has cores for all of them at once
            for program in programs_of(parts):
                program.start()
        for part in parts:
            result = run_part(part, machine, began + budget - MARGIN)
            results.append(result)
            show(result)
            write_json(output, machine, results, budget)
    finally:
        for program in programs_of(parts):
            program.kill()
        print(tables(machine, results, time.monotonic() - began, budget), flush=True)
    return results


def programs_of(parts: Sequence[Part]) -> list[Program]:
    return [program for part in parts for program in part.programs]


def show(result: Result) -> None:
    """Say on stderr how far the check is."""
    print(f"{result.status:8}{result.seconds:6.1f} s  {result.name}", file=sys.stderr, flush=True)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--budget", type=float, default=300, help="seconds for all of it")
    parser.add_argument("--only", nargs="+", default=[], help="names, or train, or train/model=*")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--list", action="store_true", help="only print the names of the parts")
    options = parser.parse_args(arguments)
    device = torch.device("cpu") if options.list else device_of(options.device)
    with tempfile.TemporaryDirectory() as work:
        machine = Machine(device, Path(work))
        parts = select(all_parts(machine), options.only)
        if options.list:
            print("\n".join(part.name for part in parts))
            return 0
        results = check(parts, machine, options.budget, options.output)
    return int(any(result.status == "failed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
