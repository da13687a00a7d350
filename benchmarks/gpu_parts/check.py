"""Runs the parts: side by side where that disturbs nothing, and one by one where they measure."""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gpu_parts.aside import Aside
from gpu_parts.part import MARGIN, Machine, Part, Result, run_part
from gpu_parts.process import Process
from gpu_parts.report import tables, write_json

RESERVE = 90.0  # seconds of the budget that compiled parts need to measure speed
ALONE = ("speed", "loop", "real run")  # parts that need the machine for themselves


@dataclass
class Plan:
    """Which parts run when.

    Args:
        timed: one after the other in this process, at first, when nothing else runs.
        here: then, one after the other in this process.
        beside: groups, each in a process of its own at the same time.
        prepared: groups in processes of their own that compile at the same time, and then wait
            for their turn to measure.
        last: after all others, in this process.
    """

    here: Sequence[Part]
    beside: Sequence[Sequence[Part]] = ()
    timed: Sequence[Part] = ()
    prepared: Sequence[Sequence[Part]] = ()
    last: Sequence[Part] = ()

    @property
    def parts(self) -> list[Part]:
        groups = [self.timed, self.here, *self.beside, *self.prepared, self.last]
        return [part for group in groups for part in group]


def is_alone(part: Part) -> bool:
    return part.name.split("/")[0] in ALONE


def planned(parts: Sequence[Part], groups: Sequence[Sequence[Part]]) -> Plan:
    """The plan for a GPU machine, which has cores to compile while other parts run.

    Args:
        groups: of the parts, those that may run beside each other.
    """
    aside = {part.name for group in groups for part in group}
    alone = [part for part in parts if is_alone(part)]
    timed = [part for part in alone if not part.name.startswith("real run/")]
    compiled = [part for part in timed if part.name.endswith(" compiled")]
    cells = dict.fromkeys(part.name.split("/")[1] for part in compiled)
    here = [part for part in parts if part.name not in aside and part not in alone]
    return Plan(
        # Published set-ups take the CPU, which they are compared with, seconds each.
        here=sorted(here, key=lambda part: part.name.startswith("train/experiment=")),
        beside=[group for group in groups if group],
        timed=[part for part in timed if part not in compiled],
        prepared=[[p for p in compiled if p.name.split("/")[1] == cell] for cell in cells],
        last=[part for part in alone if part not in timed],
    )


@dataclass
class Check:
    """Runs parts, and prints and writes what comes of them.

    Args:
        output: the JSON file, written anew after each part.
        budget: seconds for all of it, from now on.
    """

    machine: Machine
    output: Path
    budget: float
    results: list[Result] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.deadline = self.began + self.budget - MARGIN

    def __call__(self, plan: Plan) -> None:
        """Run all. What there is until then is printed also where this is interrupted."""
        for_last = min(self.machine.run_seconds, self.budget / 2) if plan.last else 0
        before_last = self.deadline - for_last
        first = before_last - (min(RESERVE, self.budget / 3) if plan.prepared else 0)
        try:
            self.run(plan.timed, first)
            beside = [self.aside(f"beside-{n}", g, first) for n, g in enumerate(plan.beside)]
            waiting = [
                self.aside(f"prepared-{n}", group, before_last, turn=True)
                for n, group in enumerate(plan.prepared)
            ]
            if self.machine.is_gpu:  # it has cores for all of them at once
                self.start(program for part in plan.parts for program in part.programs)
            self.run(plan.here, first)
            for process in beside:
                self.add(process.results())
            self.stop(all_but=waiting)
            for process in waiting:
                process.give_turn()
                self.add(process.results())
            self.stop()
            self.run(plan.last, self.deadline)
        finally:
            self.stop()
            seconds = time.monotonic() - self.began
            print(tables(self.machine, self.results, seconds, self.budget), flush=True)

    def run(self, parts: Sequence[Part], deadline: float) -> None:
        """Run parts in this process, or in a new one from where the GPU has failed this one."""
        for number, part in enumerate(parts, start=1):
            self.processes += part.programs
            result = run_part(part, self.machine, deadline)
            self.add([result])
            if result.status == "failed" and is_lost(self.machine) and parts[number:]:
                name = f"after-{len(self.results)}"
                self.add(self.aside(name, parts[number:], deadline).results())
                return

    def aside(
        self, name: str, parts: Sequence[Part], deadline: float, *, turn: bool = False
    ) -> Aside:
        """Start a process for some parts."""
        process = Aside(self.machine, name, parts, deadline, turn=turn)
        self.start([process])
        return process

    def start(self, processes: Iterable[Process]) -> None:
        for process in processes:
            self.processes.append(process)
            process.start()

    def stop(self, all_but: Sequence[Process] = ()) -> None:
        """End what still runs in the background."""
        for process in self.processes:
            if process not in all_but:
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


def share_cores() -> None:
    """Leave cores to the processes beside this one, which take two each, and compile with four."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
        os.environ["OMP_NUM_THREADS"] = "2"
