r"""Does everything work on this GPU? A smoke test for a machine that is there for a few minutes.

    python benchmarks/gpu_check.py                        # takes 300 s at most: --budget
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
skipped, and the table says why. The exit status is 1 if a part failed. On a GPU the compiled parts
run in processes of their own beside the others, and speed is measured last, alone.

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

    python -m pip wheel --no-deps -w wheels hydra-core==1.3.8 omegaconf==2.3.1 \
        antlr4-python3-runtime==4.9.3 lightning-fabric==2.6.6

and on the GPU machine, in the checkout:

    python -m pip install --no-index --no-deps --find-links wheels --target site \
        hydra-core omegaconf antlr4-python3-runtime lightning-fabric
    PYTHONPATH=site:. python benchmarks/gpu_check.py --output gpu_check.json
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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from gpu_parts.against_cpu import sampling_parts, training_parts
from gpu_parts.aside import CACHE, Aside
from gpu_parts.left_out import left_out_parts
from gpu_parts.part import MARGIN, Machine, Part, Result, run_part
from gpu_parts.process import Process
from gpu_parts.programs import Runs, program_parts
from gpu_parts.report import tables, write_json
from gpu_parts.speed import speed_parts

EAGER = ["fp32", "bf16"]
COMPILED = ["bf16 compiled", "fp32 compiled"]
LATEST = 15.0  # seconds after the budget at which the check is ended by force
RESERVE = 130.0  # seconds of the budget that the parts that measure speed may need


def all_parts(machine: Machine) -> list[Part]:
    """Every part, the most telling and the quickest first: the budget may end before the list."""
    runs = Runs(machine)
    parts = [
        *training_parts(machine, EAGER),
        *sampling_parts(machine, EAGER, runs.classifier),
        *left_out_parts(machine),
        *program_parts(runs),
        *speed_parts(machine, [*EAGER, "bf16 compiled"]),
    ]
    for mode in COMPILED:
        parts += training_parts(machine, [mode])
        parts += sampling_parts(machine, [mode], runs.classifier)
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


class Check:
    """Runs parts, and prints and writes what comes of them.

    Args:
        output: the JSON file, written anew after each part.
        budget: seconds for all of it, from now on.
    """

    def __init__(self, machine: Machine, output: Path, budget: float) -> None:
        self.machine, self.output, self.budget = machine, output, budget
        self.began = time.monotonic()
        self.deadline = self.began + budget - MARGIN
        self.results: list[Result] = []
        self.processes: list[Process] = []

    def __call__(self, parts: Sequence[Part], groups: Sequence[Sequence[Part]] = ()) -> None:
        """Run the parts one after the other, and beside them groups in a process each; last of all,
        when nothing else runs, the parts that measure speed.

        What there is until then is printed also where this is interrupted.
        """
        timed = [part for part in parts if part.name.startswith("speed/")]
        compiled = [part for part in timed if part.name.endswith("compiled")]
        reserve = min(RESERVE, self.budget / 3) if timed else 0
        try:
            beside = [
                self.aside(f"beside-{n}", group, reserve) for n, group in enumerate(groups) if group
            ]
            if groups and compiled:  # fills the compiler's cache; not looked at
                self.aside("rehearsal", compiled, reserve)
            if self.machine.is_gpu:  # it has cores for all of them at once
                self.start(program for part in parts for program in part.programs)
            self.run([part for part in parts if part not in timed])
            for process in beside:
                self.add(process.results())
            self.stop()
            self.run(timed)
        finally:
            self.stop()
            seconds = time.monotonic() - self.began
            print(tables(self.machine, self.results, seconds, self.budget), flush=True)

    def run(self, parts: Sequence[Part]) -> None:
        """Run parts in this process, or in a new one from where the GPU has failed this one."""
        for number, part in enumerate(parts, start=1):
            self.processes += part.programs
            result = run_part(part, self.machine, self.deadline)
            self.add([result])
            if result.status == "failed" and is_lost(self.machine) and parts[number:]:
                self.add(self.aside(f"after-{len(self.results)}", parts[number:]).results())
                return

    def aside(self, name: str, parts: Sequence[Part], reserve: float = 0) -> Aside:
        """Start a process for some parts, which leaves so many seconds of the budget."""
        process = Aside(self.machine, name, parts, self.deadline - reserve)
        self.start([process])
        return process

    def start(self, processes: Iterable[Process]) -> None:
        for process in processes:
            self.processes.append(process)
            process.start()

    def stop(self) -> None:
        """End what still runs in the background."""
        for process in self.processes:
            process.kill()

    def add(self, results: Sequence[Result]) -> None:
        """Take up results, say on stderr how far the check is, and write the JSON."""
        for result in results:
            line = f"{result.status:8}{result.seconds:6.1f} s  {result.name}"
            print(line, file=sys.stderr, flush=True)
        self.results += results
        write_json(self.output, self.machine, self.results, self.budget)


def is_lost(machine: Machine) -> bool:
    """Whether the GPU has met an error after which this process cannot use it any more."""
    if not machine.is_gpu:
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def split(parts: Sequence[Part]) -> tuple[list[Part], list[list[Part]]]:
    """The parts for this process, and groups for processes beside it: a GPU machine has cores to
    compile while other parts run."""
    groups = [
        [part for part in parts if part.name.endswith(f"/{mode}") and "speed/" not in part.name]
        for mode in COMPILED
    ]
    return [part for part in parts if not any(part in group for group in groups)], groups


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
    parser.add_argument("--budget", type=float, default=300, help="seconds for all of it")
    parser.add_argument("--only", nargs="+", default=[], help="names, or train, or train/model=*")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--in-order", action="store_true", help="no parts beside each other")
    parser.add_argument("--cache", type=Path, help="folder for torch.compile; default: a new one")
    parser.add_argument("--list", action="store_true", help="only print the names of the parts")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, stop_once)
    device = torch.device("cpu") if options.list else device_of(options.device)
    with tempfile.TemporaryDirectory() as work:
        machine = Machine(device, Path(work))
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
                check(*split(parts))
            else:
                check(parts)
    return int(any(result.status == "failed" for result in check.results))


if __name__ == "__main__":
    sys.exit(main())
