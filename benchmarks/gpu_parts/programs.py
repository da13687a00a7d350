"""Real runs of run.py on the device: killed and resumed, on several strategies, out of memory."""

import functools
import math
from collections.abc import Sequence

import torch

from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.config.catalog import keys
from gpu_parts.part import CheckFailed, Figures, Part
from gpu_parts.program import COMPARED, Program, Runs, losses
from gpu_parts.resume import resume_parts

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
# Largest relative difference of these losses. Other strategies do the same sums in another order;
# float16 and bfloat16 round differently.
SAME_PRECISION, OTHER_PRECISION = 1e-2, 3e-2


def program_parts(runs: Runs) -> list[Part]:
    """All parts that start run.py."""
    machine = runs.machine
    parts = [
        *resume_parts(runs),
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
    lines = [line for line in text.splitlines() if "not enough memory" in line]
    figures["message"] = lines[0][:160] if lines else ""
    if not lines or "Traceback" in text:
        raise CheckFailed(f"another message was expected:\n{text[-2000:]}")
