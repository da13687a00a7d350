"""A planned run, brought to life: processes, folder, trackers, the job, and how it ended."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from ddpm import checkpoint, run_dir
from ddpm.build import build
from ddpm.config import Plan
from ddpm.hardware import describe
from ddpm.jobs.run import Run
from ddpm.trackers.base import RunInfo, Tracker, Trackers, open_trackers

# Fabric leaves these behind, and the next run of a sweep would take them for its own.
_LEFT_BEHIND = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def launch(plan: Plan) -> dict[str, Any] | None:
    """Run a plan on the hardware it names: state, step, dir and the last figures.

    None where another process leads and tells, under torchrun or Slurm.

    Raises:
        InputError: the user has to change something.
    """
    before = {name: os.environ.get(name) for name in _LEFT_BEHIND}
    fabric: Fabric = build(plan.config["hardware"], "hardware")
    try:
        # as one callable: Fabric takes the arguments of a function apart
        return fabric.launch(functools.partial(run_rank, plan=plan))
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def run_rank(fabric: Fabric, plan: Plan) -> dict[str, Any] | None:
    """What each process does. Whatever the user may have got wrong is met before a file is made."""
    fabric.seed_everything(plan.config["seed"], verbose=False)  # weights are drawn while building
    path, state = _checkpoint(plan)
    job = build(plan.config["job"], "job")
    partials = build(plan.config["tracker"], "tracker")
    if (data := job.keywords.get("data")) is not None:
        data.prepare()
    folder = _folder(plan) if fabric.is_global_zero else None
    run = Run(
        Path(fabric.broadcast(str(folder))), plan.hparams, Trackers([]), state=state, path=path
    )
    run.writes = fabric.is_global_zero
    if run.writes:
        return _lead(fabric, plan, run, job, partials)
    job(run=run, fabric=fabric)
    return None


def _checkpoint(plan: Plan) -> tuple[Path | None, dict[str, Any] | None]:
    """Where the run starts from; a run that was stopped before its first checkpoint, from zero."""
    begun = plan.checkpoint is not None and not (
        plan.resume and plan.checkpoint.is_dir() and not (plan.checkpoint / "checkpoints").is_dir()
    )
    return checkpoint.find(plan.checkpoint) if begun else (None, None)


def _folder(plan: Plan) -> Path:
    return plan.output_dir if plan.resume else run_dir.create(plan.output_dir, unique=plan.unique)


def _lead(
    fabric: Fabric,
    plan: Plan,
    run: Run,
    job: Callable[..., str],
    partials: dict[str, Callable[..., Tracker]],
) -> dict[str, Any]:
    """The first rank's part: it alone writes into the folder and tells how the run ended."""
    with run_dir.lock(run.dir):
        run_dir.write_config(run.dir, plan.hparams)
        run.step = run.state["step"] if run.state else 0
        run_dir.write_status(run.dir, "running", run.step)
        try:
            with open_trackers(
                partials,
                run_dir=run.dir,
                run=RunInfo(
                    run_id=plan.hparams["run_id"],
                    name=plan.name,
                    group=plan.group,
                    tags=plan.tags,
                    job_type=plan.hparams["choices"]["job"],
                ),
                hparams=plan.hparams,
                start_step=run.step if plan.resume else 0,
            ) as run.tracker:
                places = run.tracker.places
                run.say(f"folder   {run.dir}\ndevice   {describe(fabric)}")
                for place in places:
                    run.say(f"tracker  {place}")
                state = job(run=run, fabric=fabric)
                run.tracker.close(state)
        except BaseException as error:
            asked = isinstance(error, KeyboardInterrupt)
            run_dir.write_status(
                run.dir,
                "preempted" if asked else "failed",
                run.step,
                error=str(error) or type(error).__name__,
            )
            raise
        run_dir.write_status(run.dir, state, run.step)
    return {"state": state, "step": run.step, "dir": run.dir, "places": places} | run.figures
