"""Figures of the code itself: sizes, imports, and the way of a command to its job.

    python benchmarks/code_figures.py

A file is entered when one of its functions is called, other than by an import; counted are the
files of ddpm/ from the start of run.py to the first line of the job, and of these the ones that are
still on the call stack there: the way of the command.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
QUICK = [
    *("model=convnet", "model.width=4", "schedule=linear", "hardware=cpu", "tracker=local"),
    *("sampler.steps=1", "job.max_steps=1", "job.batch_size=4", "job.num_samples=1"),
]
JOBS = {"train": ("ddpm/training/loop.py", "__call__"), "sample": ("ddpm/jobs/sample.py", "sample")}


class Reached(BaseException):
    """The job has begun."""


def while_importing(frame: FrameType | None) -> bool:
    """Whether a module of ddpm/ is being imported."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "<module>" and code.co_filename.startswith(str(ROOT / "ddpm")):
            return True
        frame = frame.f_back
    return False


def on_the_way(frame: FrameType | None) -> int:
    """The files of ddpm/ on the call stack."""
    files = set()
    while frame is not None:
        files.add(frame.f_code.co_filename)
        frame = frame.f_back
    return sum(name.startswith(str(ROOT / "ddpm")) for name in files)


def files_entered(words: list[str], job: str) -> tuple[int, int]:
    """The files of ddpm/ that are entered before the first line of the job, and those on the call
    stack there."""
    from ddpm import cli

    file, function = JOBS[job]
    entered: set[str] = set()
    on_stack = 0

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal on_stack
        name = frame.f_code.co_filename
        if event != "call" or on_stack or not name.startswith(str(ROOT / "ddpm")):
            return
        if name == str(ROOT / file) and frame.f_code.co_name == function:
            on_stack = on_the_way(frame)
            return
        if not while_importing(frame):
            entered.add(name)

    sys.argv[1:] = words
    sys.setprofile(watch)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            cli.main()
    finally:
        sys.setprofile(None)
    assert on_stack, f"{' '.join(words)} did not reach its job"
    return len(entered), on_stack


def in_process(words: list[str], job: str, folder: Path) -> str:
    """`files_entered` in a process of its own, as for a user: "65, 9"."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from benchmarks.code_figures import *\n"
        "print('entered', *files_entered(sys.argv[3:], sys.argv[2]))"
    )
    environment = os.environ | {"DDPM_DATA": str(folder / "data"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(ROOT), job, *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if "entered" not in done.stdout:
        raise RuntimeError(done.stdout + done.stderr)
    return ", ".join(done.stdout.split("entered")[-1].split())


def main() -> None:
    lines = [len(path.read_text().splitlines()) for path in (ROOT / "ddpm").rglob("*.py")]
    rows: dict[str, int | str] = {
        "modules at the top of ddpm/": len(list((ROOT / "ddpm").glob("*.py"))),
        "modules in ddpm/": len(lines),
        "lines in ddpm/": sum(lines),
        "longest module": max(lines),
        "lines in README.md": len((ROOT / "README.md").read_text().splitlines()),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows["files entered, on the way, train"] = in_process(
            [*QUICK, "output_dir=run"], "train", folder
        )
        words = ["job=sample", "checkpoint=run", "tracker=local", "job.num_samples=1"]
        rows["files entered, on the way, sample"] = in_process(
            [*words, "output_dir=s"], "sample", folder
        )
        rows["files entered, on the way, a sweep's job"] = in_process(
            ["-m", *QUICK, "seed=1,2"], "train", folder
        )
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(["mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
        rows["type errors"] = done.stdout.count(": error:")
    for title, figure in rows.items():
        print(f"{title:42} {figure if isinstance(figure, str) else f'{figure:,}':>8}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    main()
