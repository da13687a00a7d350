"""Processes of run.py, and what they have logged."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_parts.configuration import SMALL
from gpu_parts.part import CheckFailed, Machine
from gpu_parts.process import Process

RUN = Path(__file__).parent.parent.parent / "run.py"
COMPARED = 5  # first losses, of two runs that should be alike


class Program(Process):
    """A process of run.py that writes its run folder into a folder of its own.

    Args:
        machine: gives the device and the folder for all folders.
        name: of its folder.
        words: of the command line.
        launcher: what stands between Python and run.py, e.g. torchrun.
        folder: where to run instead, for a run that goes on with another.
        status: how it must end.
        environment: beside this process's own.
    """

    def __init__(
        self,
        machine: Machine,
        name: str,
        words: Sequence[str],
        *,
        launcher: Sequence[str] = (),
        folder: Path | None = None,
        status: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            [*launcher, str(RUN), *words],
            folder or machine.work / name,
            machine.work / f"{name}.log",
            {"DDPM_DATA": str(machine.work / "data"), **(environment or {})},
        )
        self.status = status

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    def wait(self) -> str:
        """Start it if need be, and wait for its end: what it printed.

        Raises:
            CheckFailed: it ended with another status than expected.
        """
        status, text = self.end(), self.printed()
        if status != self.status:
            words = " ".join(self.command[self.command.index(str(RUN)) :])
            raise CheckFailed(f"{words} ended with status {status}:\n{text[-2000:]}")
        return text


def losses(program: Program) -> dict[int, float]:
    """The loss of each step that was logged and not left out. The last line of a killed run may be
    half a line."""
    rows = []
    for line in (program.run / "metrics.jsonl").read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


class Runs:
    """The runs that several parts look at."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.every = [
            *(f"hardware={machine.hardware}", "tracker=local", "sampler.steps=2"),
            *("job.num_samples=2", "job.sample_every=null", "job.log_every=1", "job.batch_size=16"),
            "job.warmup_steps=10",
        ]
        self.alone = self.train("alone")
        self.classifier = self.program(
            "classifier", *self.every[:2], "job=train_classifier", "job.max_steps=4"
        )
        weak = self.train("weak", *SMALL, "data.conditional=true", "job.max_steps=4")
        self.guides = {"guidance.classifier": self.classifier, "guidance.weak": weak}

    def program(self, name: str, *words: str, **knobs: Any) -> Program:
        return Program(self.machine, name, [*words, "output_dir=run"], **knobs)

    def train(self, name: str, *words: str, **knobs: Any) -> Program:
        """A training run of a few steps, unless the words give more."""
        every = [*self.every, f"job.max_steps={COMPARED}", *words]
        last = {word.partition("=")[0]: word for word in every}  # what is said later counts
        return self.program(name, *last.values(), **knobs)
