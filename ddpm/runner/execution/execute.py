"""A planned run is done, and what came of it is told."""

from pathlib import Path
from typing import Any

from ddpm.runner.config.plan import Plan
from ddpm.runner.distributed import ranks
from ddpm.runner.safe_io import listing
from ddpm.runner.terminal import shell

PICTURES = ("strip.png", "grid.png", "denoising.gif")  # what jobs other than training leave


class Preempted(KeyboardInterrupt):
    """A run was asked to stop and did, with all in order; what comes after it does not begin."""

    def __init__(self, signal: int | None) -> None:
        self.signal = signal or 15  # without one, the process that started this one died


def execute(plan: Plan) -> dict[str, Any] | None:
    """Launch a plan, and say what came of it: state, step, dir and the last figures.

    None where another process leads and tells, under torchrun or Slurm.

    Raises:
        Preempted: it was asked to stop.
        InputError: the user has to change something.
    """
    if ranks.is_rank_zero():
        print(f"{plan.config['choices']['job']:8} {plan.name}", flush=True)
    from ddpm.runner.execution import (
        eager,  # torch comes in here, seconds after a mistake would have shown
    )

    if plan.config["job"].get("compile") is not True:
        eager.import_fabric()
    from ddpm.runner.execution.launch import launch

    result = launch(plan)
    if result is not None:
        _print_outcome(result, plan)
        if result["state"] == "preempted":
            raise Preempted(result["signal"])
    return result


def _print_outcome(result: dict[str, Any], plan: Plan) -> None:
    """Print how the run ended, and the command that comes next."""
    job = plan.config["choices"]["job"]
    if job == "export":
        return  # it told all itself
    folder: Path = result["dir"]
    if plan.trains:
        _print_training_outcome(result, job)
    elif result["state"] == "preempted":
        print(f"preempted  {folder}; the same command goes on")
    else:
        made = [name for name in PICTURES if (folder / name).is_file()] or ["samples"]
        beside = f" and {', '.join(made[1:])} beside it" if made[1:] else ""
        print(f"{result['state']:8} {folder / made[0]}{beside}")


def _print_training_outcome(result: dict[str, Any], job: str) -> None:
    """How far the training came, and what a person does next."""
    folder: Path = result["dir"]
    print(f"{result['state']:8} {result['step']} steps in {folder}")
    if result["state"] == "preempted":
        print(f"go on    {shell.command(shell.word('resume', folder))}")
        return
    if job == "train_classifier":
        print(
            "guide    python run.py job=sample checkpoint=<a run of the same data> "
            f"guidance=classifier {shell.word('guidance.classifier', folder)}"
        )
        return
    print(f"picture  {_newest_picture(folder)}")
    print(f"sample   {shell.command('job=sample', shell.word('checkpoint', folder))}")


def _newest_picture(folder: Path) -> str:
    """The last preview of a run; or why it is not known: the training itself is done."""
    try:
        pictures = listing.paths(folder / "samples", "step-*.png")
    except listing.Unreachable as error:
        return str(error)
    return str(pictures[-1]) if pictures else "none"
