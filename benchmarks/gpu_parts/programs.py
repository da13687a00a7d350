"""Real runs of run.py on the device: killed and resumed, on several strategies, out of memory."""

import contextlib
import functools
import json
import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm import checkpoint
from ddpm.catalog import keys
from gpu_parts.part import CheckFailed, Figures, Machine, Part
from gpu_parts.process import Process

RUN = Path(__file__).parent.parent.parent / "run.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
SAVES = 6  # checkpoints in the run that is killed
COMPARED = 5  # first losses, of two runs that should be alike
# Largest relative difference of these losses. Other strategies do the same sums in another order;
# float16 and bfloat16 round differently.
SAME_PRECISION, OTHER_PRECISION = 1e-2, 3e-2
FACTOR = 10.0  # by how much more than two undisturbed runs a resumed one may differ from another


class Program(Process):
    """A process of run.py that writes its run folder into a folder of its own.

    Args:
        machine: gives the device and the folder for all folders.
        name: of its folder.
        words: of the command line.
        launcher: what stands between Python and run.py, e.g. torchrun.
        folder: where to run instead, for a run that goes on with another.
        status: how it must end.
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
    ) -> None:
        super().__init__(
            [*launcher, str(RUN), *words],
            folder or machine.work / name,
            machine.work / f"{name}.log",
            {"DDPM_DATA": str(machine.work / "data")},
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


class Runs:
    """The runs that several parts look at."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.steps = 600 if machine.is_gpu else 30
        self.every = [
            *(f"hardware={machine.hardware}", "tracker=local", "sampler.steps=2"),
            *("job.num_samples=2", "job.sample_every=null", "job.log_every=1", "job.batch_size=16"),
            "job.warmup_steps=10",
        ]
        self.whole = [f"job.max_steps={self.steps}", f"job.save_every={self.steps // SAVES}"]
        self.alone = self.train("alone", *self.whole)
        self.twin = self.train("twin", *self.whole)
        self.killed = self.train("killed", *self.whole)
        self.classifier = self.program(
            "classifier", *self.every[:2], "job=train_classifier", "job.max_steps=4"
        )

    def program(self, name: str, *words: str, **knobs: Any) -> Program:
        return Program(self.machine, name, [*words, "output_dir=run"], **knobs)

    def train(self, name: str, *words: str, **knobs: Any) -> Program:
        """A training run of a few steps, unless the words give more."""
        every = [*self.every, f"job.max_steps={COMPARED}", *words]
        last = {word.partition("=")[0]: word for word in every}  # what is said later counts
        return self.program(name, *last.values(), **knobs)


def program_parts(runs: Runs) -> list[Part]:
    """All parts that start run.py."""
    machine = runs.machine
    undisturbed = [runs.alone, runs.twin] if machine.is_gpu else [runs.alone]
    parts = [
        Part(
            "run/kill -9 and resume",
            functools.partial(check_resume, runs, undisturbed),
            programs=undisturbed,
        ),
        Part("run/job=sample", functools.partial(check_sample, runs), programs=[runs.alone]),
        Part(
            "run/job=train_classifier",
            functools.partial(check_classifier, runs.classifier),
            programs=[runs.classifier],
        ),
    ]
    for option in strategies():
        accelerator = f"hardware.accelerator={'cuda' if machine.is_gpu else 'cpu'}"
        words = (f"hardware={option}", accelerator)
        parts.append(alike(runs, f"hardware={option}", words, SAME_PRECISION, launcher=TORCHRUN))
    fp16 = ("hardware.precision=16-mixed",)
    parts.append(alike(runs, "16-mixed", fp16, OTHER_PRECISION, needs=("gpu",)))
    compiled = ("job.compile=true", "model=convnet", "model.width=16")
    plain = runs.train("not-compiled", *compiled[1:])
    parts.append(
        alike(runs, "job.compile=true", compiled, SAME_PRECISION, plain, needs=("compiler",))
    )
    full = large(runs) if machine.is_gpu else None
    parts.append(
        Part(
            "run/out of memory",
            functools.partial(check_out_of_memory, full),
            ("gpu",),
            programs=[full] if full else [],
        )
    )
    return parts


def strategies() -> list[str]:
    """The options of conf/hardware for several devices."""
    named = [key for key in keys() if key.name == "hardware.strategy"]
    return [key.option for key in named if key.option and key.default != "auto"]


def alike(
    runs: Runs,
    name: str,
    words: Sequence[str],
    allowed: float,
    plain: Program | None = None,
    *,
    needs: tuple[str, ...] = (),
    launcher: Sequence[str] = (),
) -> Part:
    """A run whose first losses should be those of a plain one, `runs.alone` if none is given."""
    plain = plain or runs.alone
    other = runs.train(name.replace("=", "-"), *words, launcher=launcher)
    check = functools.partial(check_alike, plain, other, allowed)
    return Part(f"run/{name}", check, needs, programs=[plain, other])


def check_resume(runs: Runs, undisturbed: Sequence[Program], figures: Figures) -> None:
    """A run that is killed and resumed ends with the weights of one that was left alone.

    To the bit where two undisturbed runs are equal to the bit. Where they are not (some kernels of
    a GPU add in any order) the resumed run must be about as near to one of them as the other is.
    """
    for program in undisturbed:
        program.start()
    killed = runs.killed
    killed.start()
    figures["killed after step"] = kill_after_checkpoint(killed)
    resumed = Program(runs.machine, "resumed", ["resume=run"], folder=killed.folder)
    for program in (resumed, *undisturbed):
        program.wait()
    first, *others = [final_state(program) for program in undisturbed]
    twins = max((differs(first, other) for other in others), default=0.0)
    found = differs(first, final_state(killed))
    figures |= {"difference": found, "of two undisturbed runs": twins, "steps": runs.steps}
    if found > FACTOR * twins:
        raise CheckFailed(f"the resumed run differs by {found:.2g}, two undisturbed by {twins:.2g}")


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


def check_sample(runs: Runs, figures: Figures) -> None:
    """job=sample draws from the checkpoint of a run."""
    runs.alone.wait()
    words = [f"hardware={runs.machine.hardware}", "tracker=local", "job=sample"]
    words += [f"checkpoint={runs.alone.run}", "job.num_samples=4"]
    drawn = runs.program("sample", *words)
    drawn.wait()
    figures["images"] = len(list(drawn.run.glob("samples/0*.png")))
    if figures["images"] != 4 or not (drawn.run / "grid.png").is_file():
        raise CheckFailed(f"4 images and a grid should be there, not {figures['images']} images")


def check_classifier(program: Program, figures: Figures) -> None:
    """A classifier is trained for guidance."""
    program.wait()
    figures["last loss"] = list(losses(program).values())[-1]


def check_alike(plain: Program, other: Program, allowed: float, figures: Figures) -> None:
    """Two runs whose first losses should be the same."""
    for program in (plain, other):
        program.wait()
    expected, found = losses(plain), losses(other)
    common = [n for n in found if n <= COMPARED and n in expected]
    if not common:
        raise CheckFailed("no step of both runs has a finite loss")
    figures["difference"] = max(abs(found[n] / expected[n] - 1) for n in common)
    figures |= {"allowed": allowed, "of losses": len(common)}
    _, state = checkpoint.find(other.run)
    if state["scaler"]:
        figures["scale"] = state["scaler"]["scale"]
    if not figures["difference"] <= allowed:
        raise CheckFailed(f"losses differ by {figures['difference']:.2g}: {found}, {expected}")


def losses(program: Program) -> dict[int, float]:
    """The loss of each step that was logged and not left out. The last line of a killed run may be
    half a line."""
    rows = []
    for line in (program.run / "metrics.jsonl").read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def large(runs: Runs) -> Program:
    """A run that asks for twice the memory of the GPU at once, so that no other run goes short."""
    size, width = 256, 1024
    memory = torch.cuda.get_device_properties(runs.machine.device).total_memory
    batch = math.ceil(2 * memory / (4 * width * size * size))
    words = ["model=convnet", f"model.width={width}", f"data.image_size={size}"]
    words += [f"job.batch_size={batch}", "hardware.precision=32-true"]
    return runs.train("out-of-memory", *words, status=2)


def check_out_of_memory(program: Program | None, figures: Figures) -> None:
    """Too large a batch is answered by our message, and no traceback."""
    assert program is not None
    text = program.wait()
    lines = [line for line in text.splitlines() if "job.batch_size=" in line and "memory" in line]
    figures["message"] = lines[0][:160] if lines else ""
    if not lines or "Traceback" in text:
        raise CheckFailed(f"another message was expected:\n{text[-2000:]}")
