"""The memory that runs say they expect, beside what they took at most."""

import functools
import json
from typing import Any, NamedTuple

from settings import NETWORKS, on_digits

from ddpm.runner.runs import run_dir
from gpu_parts.configuration import SMALL, has_key
from gpu_parts.part import CheckFailed, Figures, Machine, Part
from gpu_parts.program import Program, Runs
from gpu_parts.speed import target

EXPECTED = "expected_memory_mb"  # of a run, in its about.json
OFF = 15.0  # per cent, at most


class Case(NamedTuple):
    """A network, the images of a step, and words beside them."""

    words: tuple[str, ...]
    batch: int
    more: tuple[str, ...] = ()


UNET = ("experiment=attention_unet64",)
RECOMPUTE = ("job.recompute=true",)
CASES = {
    "ho 64": Case(NETWORKS["ho"], 64),
    "ho 128": Case(NETWORKS["ho"], 128),
    "celeba64 16": Case(NETWORKS["celeba64"], 16),
    "celeba64 32": Case(NETWORKS["celeba64"], 32),
    "attention_unet64 12": Case(UNET, 12),
    "attention_unet64 48": Case(UNET, 48),
    "ho256 2": Case(NETWORKS["ho256"], 2),
    "ho256 2, recomputed": Case(NETWORKS["ho256"], 2, RECOMPUTE),
}


def memory_parts(runs: Runs) -> list[Part]:
    """A short run of each case; none if runs do not print the memory they expect."""
    if not has_key("job", "train", "job.recompute"):
        return []
    programs = {name: program(runs, name, case) for name, case in CASES.items()}
    return [
        Part(
            f"memory/{name}",
            functools.partial(check_memory, runs.machine, one),
            programs=[one],
        )
        for name, one in programs.items()
    ]


def program(runs: Runs, name: str, case: Case) -> Program:
    """A run of some steps; of a small network on a CPU."""
    words: tuple[str, ...] = (*SMALL, "data=digits")
    if runs.machine.is_gpu:
        words = on_digits(case.words)
    elif case.more:  # a network that has blocks
        words = ("model=resunet", "data=digits")
    batch = case.batch if runs.machine.is_gpu else min(case.batch, 8)
    return runs.train(
        f"memory-{name}".replace(" ", "-").replace(",", ""),
        *words,
        *case.more,
        f"job.batch_size={batch}",
        "job.sample_every_epochs=null",
        "job.num_samples=1",
    )


def check_memory(machine: Machine, program: Program, figures: Figures) -> None:
    """Fill in both. On a CPU the measured memory is that of all the process, libraries too."""
    text = program.wait()
    about: dict[str, Any] = run_dir.read_about(program.run)
    if EXPECTED not in about:
        raise CheckFailed(f"the run did not print the memory it expects:\n{text[-1000:]}")
    lines = (program.run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    measured = max(row["train/memory_mb"] for row in rows if "train/memory_mb" in row)
    figures |= {"expected MB": about[EXPECTED], "measured MB": round(measured, 1)}
    if machine.is_gpu:
        off = 100 * abs(about[EXPECTED] / measured - 1)
        figures["targets"] = [target("expected memory is off", off, OFF, " %", most=True)]
