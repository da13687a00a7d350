"""One part of the check: what it needs, how it is run, and what came of it."""

import contextlib
import importlib.util
import math
import shutil
import signal
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ddpm.runner.distributed.fabric import fast_bf16
from gpu_parts.process import Process

Figures = dict[str, Any]  # what a part measured: numbers and short texts, for the table and JSON
MARGIN = 5.0  # seconds of the budget that are kept for the report
PATIENCE = {"cuda": 150.0, "cpu": 1000.0}  # seconds after which a part counts as hung


class Skipped(Exception):
    """Raised by a part that cannot run here; the message says why."""


class CheckFailed(Exception):
    """Raised by a part whose result is wrong; the message says in what way."""


class OutOfTime(BaseException):
    """The budget ended. No `except Exception` of a library holds it up."""


@dataclass(frozen=True)
class Machine:
    """Where the check runs.

    Args:
        device: "cuda" or "cpu".
        work: an empty folder for everything that is written.
        turn: a file that appears when it is this process's turn to have the GPU for itself; None:
            it has it already.
        cifar: the pictures of CIFAR-10, a folder or an archive, if they are there.
        run_seconds: for the real run.
        samples: of it to score; None: as many as suit the device.
        output: the JSON file; pictures go beside it.
        deadline: of all parts, on the clock of `time.monotonic`.
    """

    device: torch.device
    work: Path
    turn: Path | None = None
    cifar: Path | None = None
    run_seconds: float = 240.0
    samples: int | None = None
    output: Path = Path("gpu_check.json")
    deadline: float = math.inf

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def hardware(self) -> str:
        """The option of conf/hardware for this device."""
        return "gpu" if self.is_gpu else "cpu"

    def wait_for_turn(self) -> None:
        """Wait until nothing else uses the GPU, with what is to be measured compiled and ready."""
        while self.turn is not None and not self.turn.exists():
            time.sleep(0.05)


@dataclass(frozen=True)
class Part:
    """One cell or row of the table.

    Args:
        name: e.g. "train/model=unet/bf16".
        check: fills a dict with figures, and raises CheckFailed or anything else if the result is
            wrong. What it has filled in until then is reported all the same.
        needs: keys of NEEDS.
        seconds: do not start the part with less time left than this.
        programs: processes that the part waits for. They are started early on a GPU machine.
        waits: it takes as long as other parts let it wait, or as it was asked to take.
    """

    name: str
    check: Callable[[Figures], None]
    needs: tuple[str, ...] = ()
    seconds: float = 1.0
    programs: Sequence[Process] = ()
    waits: bool = False


@dataclass
class Result:
    """What came of a part. `status` is "passed", "failed" or "skipped"."""

    name: str
    status: str
    seconds: float
    reason: str = ""
    figures: Figures = field(default_factory=dict)
    traceback: str = ""


def run_part(part: Part, machine: Machine, deadline: float) -> Result:
    """Run one part. Only KeyboardInterrupt and SystemExit get out of here.

    Args:
        deadline: on the clock of `time.monotonic`.
    """
    result = Result(part.name, "passed", 0.0)
    began = time.monotonic()
    try:
        left = deadline - began
        if reason := why_not(part, machine, left):
            raise Skipped(reason)
        with time_limit(left if part.waits else min(left, PATIENCE[machine.device.type])):
            part.check(result.figures)
    except Skipped as reason:
        result.status, result.reason = "skipped", str(reason)
    except OutOfTime:
        ended = time.monotonic() >= deadline
        result.status = "skipped" if ended else "failed"
        result.reason = "the budget ended while it ran" if ended else "it hung, and was given up"
    except Exception as error:
        result.status = "failed"
        result.reason = f"{type(error).__name__}: {error}"
        result.traceback = traceback.format_exc()
    result.seconds = round(time.monotonic() - began, 2)
    return result


def why_not(part: Part, machine: Machine, left: float) -> str | None:
    """Why a part cannot start, with so many seconds left; None if it can."""
    reasons = (NEEDS[need](machine.device) for need in part.needs)
    if reason := next(filter(None, reasons), None):
        return reason
    if left <= 0:
        return "the budget is used up"
    if left < part.seconds:
        return f"{left:.0f} s of the budget are left, it may take {part.seconds:.0f} s"
    return None


def no_gpu(device: torch.device) -> str | None:
    return None if device.type == "cuda" else "needs a GPU"


def no_bf16(device: torch.device) -> str | None:
    """Slow bfloat16 is good enough on a CPU: the result is the same."""
    if device.type == "cuda" and not fast_bf16(device):
        return "this GPU has no bfloat16"
    return None


def no_compiler(device: torch.device) -> str | None:
    """What torch.compile lacks: a C or C++ compiler, Python's headers, on a GPU also Triton."""
    compilers = ("cc", "gcc", "clang") if device.type == "cuda" else ("g++", "clang++")
    if not any(map(shutil.which, compilers)):
        return f"torch.compile needs a compiler ({', '.join(compilers)})"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "torch.compile needs Python.h (package python3-dev)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton"
    return None


NEEDS = {"gpu": no_gpu, "bf16": no_bf16, "compiler": no_compiler}


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the main thread after so many seconds. An alarm that was set before, as by
    a test runner, is set again afterwards."""

    def stop(number: int, frame: object) -> None:
        raise OutOfTime

    handler = signal.signal(signal.SIGALRM, stop)
    began = time.monotonic()
    before, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if before:
            rest = max(before - (time.monotonic() - began), 0.001)
            signal.setitimer(signal.ITIMER_REAL, rest, interval)
