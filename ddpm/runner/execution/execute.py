"""Execute a plan and print the outcome."""

import signal
from pathlib import Path
from typing import Any

from ddpm.runner import own_folder
from ddpm.runner.config.plan import Plan
from ddpm.runner.distributed import ranks
from ddpm.runner.runs import previews
from ddpm.runner.safe_io import listing
from ddpm.runner.terminal import shell

PICTURES = ("explain.html", "strip.png", "grid.png", "denoising.gif")  # that jobs write


class Preempted(KeyboardInterrupt):
    """A run was stopped on request and saved its state. No further run of the command starts."""

    def __init__(self, number: int | None, folder: Path | None = None) -> None:
        super().__init__(*([] if folder is None else [f"stopped and saved in {folder}"]))
        self.signal = number or signal.SIGTERM  # None: the parent process died
        self.printed = folder is not None  # with the outcome of the run


def execute(plan: Plan) -> dict[str, Any] | None:
    """Launch a plan, print the outcome and return it: state, step, dir and the last metrics.

    Under torchrun or Slurm, ranks other than the first return None.

    Raises:
        Preempted: the run was stopped on request.
        InputError: a mistake of the user.
    """
    own_folder.use(plan.own_folder)  # a launcher may have started this process
    if ranks.is_rank_zero():
        print(f"{plan.config['choices']['job']:8} {plan.name}", flush=True)
    # torch comes in here, seconds after a mistake would have shown
    from ddpm.runner.execution import eager

    if plan.config["job"].get("compile") is not True:
        eager.import_fabric()
    from ddpm.runner.execution.launch import launch

    result = launch(plan)
    if result is not None:
        _print_outcome(result, plan)
        if result["state"] == "preempted":
            raise Preempted(result["signal"], result["dir"])
    return result


def _print_outcome(result: dict[str, Any], plan: Plan) -> None:
    """Print how the run ended, and the command that comes next."""
    job = plan.config["choices"]["job"]
    if plan.config["kind"] == "converts" or job == "play":
        return  # the job has printed its own
    folder: Path = result["dir"]
    if plan.trains:
        _print_training_outcome(result, job)
    elif result["state"] == "preempted":
        print(f"{_ended(result):9}  {folder}; the same command resumes it")
    else:
        drawn = "samples" if (folder / "samples").is_dir() else ""
        first, *others = [p for p in PICTURES if (folder / p).is_file()] or [drawn]
        beside = f" and {', '.join(others)} beside it" if others else ""
        print(f"{result['state']:8} {folder / first}{beside}")


def _print_training_outcome(result: dict[str, Any], job: str) -> None:
    """Print the steps of a training run, and commands that use or resume it."""
    folder: Path = result["dir"]
    print(f"{_ended(result):8} {result['step']} steps in {folder}")
    if result["state"] == "preempted":
        print(f"go on    {shell.command(shell.word('resume', folder))}")
        return
    if job == "train_classifier":
        print(f"guide    {shell.guiding(folder)}")
        return
    print(f"picture  {_newest_picture(folder)}")
    print(f"sample   {shell.command('job=sample', shell.word('checkpoint', folder))}")


def _ended(result: dict[str, Any]) -> str:
    """The state of a run that has ended; one that its user interrupted is called stopped."""
    interrupted = result["state"] == "preempted" and result["signal"] == signal.SIGINT
    return "stopped" if interrupted else result["state"]


def _newest_picture(folder: Path) -> str:
    """The last preview of a run. An error is returned as text: the training itself succeeded."""
    try:
        pictures = previews.by_step(folder)
    except listing.Unreachable as error:
        return str(error)
    return str(pictures[max(pictures)]) if pictures else "none"
