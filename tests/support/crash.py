"""run.py in a forked process that may be killed: what survives is what is on the disk."""

import atexit
import ctypes
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from support.base import ROOT, TINY
from support.sharing import curve_of_a_loss

DATA = tempfile.mkdtemp()  # the digits are cached once for all runs
atexit.register(shutil.rmtree, DATA)  # not by the copies, which end by os._exit

# What a run imports on its way: done once here, and not in each copy of this process.
for name in (
    *("ddpm.runner.execution.launch", "ddpm.jobs.train", "ddpm.jobs.sample", "ddpm.data.digits"),
    *("ddpm.models.convnet", "ddpm.models.resunet", "ddpm.objectives.v", "ddpm.schedules.learned"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "sklearn.datasets"),
    *("ddpm.samplers.ddim", "ddpm.guidance.none", "ddpm.weightings.uniform", "torch._dynamo"),
):
    importlib.import_module(name)

# So, too, what a composition reads, and the one picture of a loss for tests that look at none.
GlobalHydra.instance().clear()
with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
    compose("config", TINY)
importlib.import_module("ddpm.runner.config.catalog").keys()
CURVE = curve_of_a_loss()

# Before any test compiles: a first backward pass after that would start threads, beside which no
# copy of this process could run one.
torch.zeros(1, requires_grad=True).sum().backward()

# Signals whose handlers this process may have changed; torch's loaders set that of SIGCHLD.
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
FRESH = (*ASKING, signal.SIGCHLD)

PR_SET_PDEATHSIG = 1  # sys/prctl.h

SAMPLE = ["job=sample", "hardware=cpu", "tracker=local"]


def start(folder: Path, *arguments: str, crash: str | None = None) -> int:
    """Start run.py in `folder`, in a copy of this process: its number. A fork costs a hundredth of
    what a new interpreter that imports torch does. Prints go to `folder/out.txt`."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        if sys.platform == "linux":  # a failed test may leave it running: it ends with this process
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.chdir(folder)
        os.environ["DDPM_DATA"], os.environ["HOME"] = DATA, str(folder)
        os.environ.pop("HYDRA_FULL_ERROR", None)  # run.py sets it in this process
        if crash:
            os.environ["DDPM_CRASHPOINT"] = crash
        out = os.open(folder / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
        for number in FRESH:
            signal.signal(number, signal.SIG_DFL)
        sys.argv = [str(ROOT / "run.py"), *arguments]
        _run()
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1 if end.code else 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(99)
    finally:
        sys.stdout.flush()
        os._exit(0)


def _run() -> None:
    from ddpm import cli
    from ddpm.runner.sweeps import callback
    from ddpm.trackers import local

    local.loss_curve = lambda *_: CURVE
    torch.set_num_threads(1)
    GlobalHydra.instance().clear()
    cli._single = cli.Outcome()
    callback.forget()
    cli.main()


def wait(child: int) -> int:
    """The exit status of a process; -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def go(folder: Path, *arguments: str, crash: str | None = None) -> int:
    return wait(start(folder, *arguments, crash=crash))


def output_of(folder: Path) -> str:
    """What all runs in a folder have printed."""
    return (folder / "out.txt").read_text()


def until(condition, child: int, seconds: float = 60) -> None:
    """Wait until `condition()` is true, while the process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended first"
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.002)


__all__ = ["SAMPLE", "TINY", "go", "output_of", "start", "until", "wait"]
