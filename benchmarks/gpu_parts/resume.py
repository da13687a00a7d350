"""Runs that are killed and resumed, against runs that are left alone."""

import functools
import math
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm.runner.checkpoints import checkpoint
from gpu_parts.part import CheckFailed, Figures, Part
from gpu_parts.program import Program, Runs, losses

SAVES = 6  # checkpoints in the run that is killed
FACTOR = 10.0  # by how much more than two undisturbed runs a resumed one may differ from another

# run.py where PyTorch takes deterministic algorithms, and warns of operations that have none.
DETERMINISTIC = """
import os, runpy, sys, torch
torch.use_deterministic_algorithms(True, warn_only=True)
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # without it, matrix products are not deterministic
NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")


@dataclass
class Trial:
    """Runs of the same words.

    Args:
        undisturbed: one, or two that show by how much runs differ from each other.
        killed: is killed after its first checkpoint.
        resumed: goes on from there.
    """

    undisturbed: Sequence[Program]
    killed: Program
    resumed: Program


def resume_parts(runs: Runs) -> list[Part]:
    """Kill and resume as runs are by default, and with deterministic algorithms."""
    knobs = {"launcher": ("-c", DETERMINISTIC), "environment": CUBLAS}
    count = 2 if runs.machine.is_gpu else 1  # undisturbed runs of a CPU are equal
    trials = {
        "run/kill -9 and resume": (trial(runs, "default", count), check_resume),
        "run/kill -9 and resume, deterministic": (
            trial(runs, "deterministic", 1, **knobs),
            check_equal,
        ),
    }
    return [
        Part(name, functools.partial(check, one), programs=one.undisturbed)
        for name, (one, check) in trials.items()
    ]


def trial(runs: Runs, name: str, count: int, **knobs: Any) -> Trial:
    """The runs of a trial, so many of them undisturbed."""
    steps = 600 if runs.machine.is_gpu else 30
    words = (f"job.max_steps={steps}", f"job.save_every={steps // SAVES}")
    killed = runs.train(f"{name}-killed", *words, **knobs)
    resumed = Program(
        runs.machine, f"{name}-resumed", ["resume=run"], folder=killed.folder, **knobs
    )
    undisturbed = [runs.train(f"{name}-{i}", *words, **knobs) for i in range(count)]
    return Trial(undisturbed, killed, resumed)


def check_resume(trial: Trial, figures: Figures) -> None:
    """A run that is killed and resumed ends with the weights of one that was left alone.

    To the bit where two undisturbed runs are equal to the bit. Where they are not (some kernels of
    a GPU add in any order) the resumed run must be about as near to one of them as the other is.
    """
    first, *others = states(trial, figures)
    twins = max((differs(first, other) for other in others), default=0.0)
    figures["of two undisturbed runs"] = twins
    found = figures["difference"] = differs(first, final_state(trial.killed))
    if found > FACTOR * twins:
        raise CheckFailed(f"the resumed run differs by {found:.2g}, two undisturbed by {twins:.2g}")


def check_equal(trial: Trial, figures: Figures) -> None:
    """The same with deterministic algorithms, to the bit, unless PyTorch has none for something.

    Figures hold the operations for which it has none.
    """
    first, *_ = states(trial, figures)
    texts = [run.printed() for run in (*trial.undisturbed, trial.killed, trial.resumed)]
    lacking = sorted({name for text in texts for name in NOT_DETERMINISTIC.findall(text)})
    figures["not deterministic in PyTorch"] = ", ".join(lacking) or "nothing"
    found = figures["difference"] = differs(first, final_state(trial.killed))
    figures["equal to the bit"] = found == 0
    if found and not lacking:
        raise CheckFailed(f"the resumed run differs by {found:.2g} in spite of determinism")


def states(trial: Trial, figures: Figures) -> list[dict[str, Tensor]]:
    """Do all of a trial: how the undisturbed runs end."""
    for program in (*trial.undisturbed, trial.killed):
        program.start()
    figures["killed after step"] = kill_after_checkpoint(trial.killed)
    for program in (trial.resumed, *trial.undisturbed):
        program.wait()
    return [final_state(program) for program in trial.undisturbed]


def kill_after_checkpoint(program: Program) -> int:
    """Kill a run soon after its first checkpoint: the last step that it logged.

    Raises:
        CheckFailed: it ended before.
    """
    assert program.process is not None
    while not list(program.run.glob("checkpoints/step-*.pt")):
        if program.process.poll() is not None:
            program.wait()
            raise CheckFailed("the run left no checkpoint")
        time.sleep(0.01)
    program.kill()
    if program.process.returncode != -signal.SIGKILL:
        raise CheckFailed("the run ended before it was killed")
    return max(losses(program), default=0)


def final_state(program: Program) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint: network, average, optimizer."""
    _, state = checkpoint.find(program.run)
    found: dict[str, Tensor] = {}

    def gather(node: Any, name: str) -> None:
        if isinstance(node, Tensor):
            found[name] = node.double()
        elif isinstance(node, dict):
            for key, value in node.items():
                gather(value, f"{name}.{key}")

    for part in ("model", "ema", "diffusion", "optimizer", "scaler"):
        gather(state[part], part)
    return found | {"step": torch.tensor(float(state["step"]))}


def differs(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two states relative to the norm of a tensor; 0: equal bits."""
    if a.keys() != b.keys():
        raise CheckFailed(f"the checkpoints hold different entries: {sorted(a.keys() ^ b.keys())}")
    pairs = [(a[name], b[name]) for name in a if not torch.equal(a[name], b[name])]
    found = [float((x - y).norm() / x.norm().clamp(min=1e-30)) for x, y in pairs]
    return max((math.inf if value != value else value for value in found), default=0.0)
