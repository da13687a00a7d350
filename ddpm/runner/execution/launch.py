"""Start the processes of a run, build its parts, call the job and return its result."""

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.multiprocessing import ProcessExitedException

from ddpm.errors import InputError, ReportedElsewhere, shown
from ddpm.pretrained import check_fits
from ddpm.runner import own_folder
from ddpm.runner.checkpoints import checkpoint, summary
from ddpm.runner.config.build import build
from ddpm.runner.config.plan import Plan
from ddpm.runner.distributed import environment, ranks, signals
from ddpm.runner.distributed.fabric import is_first_report, starts_processes
from ddpm.runner.distributed.reduce import any_rank
from ddpm.runner.execution.initial_weights import InitialWeights
from ddpm.runner.execution.run import Run
from ddpm.runner.runs import run_dir
from ddpm.runner.safe_io import listing
from ddpm.runner.terminal import shell, streams
from ddpm.trackers.multi import check_installed

# Fabric does not reset these, and the next run of a sweep would use them.
_SET_BY_FABRIC = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def launch(plan: Plan) -> dict[str, Any] | None:
    """Run a plan on its hardware and return state, step, dir and the last metrics.

    Under torchrun or Slurm, ranks other than the first return None.

    Raises:
        InputError: a mistake of the user.
    """
    with environment.restored(_SET_BY_FABRIC):
        with ranks.report_once():
            fabric: Fabric = build(plan.config["hardware"], "hardware")
        # one callable without arguments: Fabric would modify those it is given
        rank = functools.partial(run_rank, plan=plan)
        return _in_children(fabric, rank) if starts_processes(fabric) else fabric.launch(rank)


def _in_children(fabric: Fabric, rank: Callable[[Fabric], Any]) -> Any:
    """Run a function in child processes.

    Raises:
        StoppedAtOnce: a signal stopped a process while it started.
        InputError: a process died, or none could be started.
    """
    with signals.to_children() as received:
        try:
            return fabric.launch(rank)
        except ProcessExitedException as error:
            if received:
                raise signals.StoppedAtOnce(received[0], "before the first step") from None
            raise InputError(
                f"A process of the run died ({shown(error)}), often because the machine ran out of "
                "memory. The run can be resumed."
            ) from error
        except OSError as error:  # of this process, before any child has started
            reason = shown(error.strerror or error)
            raise InputError(
                f"The processes of the run cannot be started ({reason}). They need shared memory "
                "(on Linux /dev/shm) and free memory; hardware.devices=1 needs no processes."
            ) from error


def run_rank(fabric: Fabric, plan: Plan) -> dict[str, Any] | None:
    """Run a plan in one process.

    Raises:
        InputError: a mistake of the user.
        ReportedElsewhere: the same, and another process of the run has already reported it.
    """
    streams.protect()  # needed in spawned processes, as is the next line
    own_folder.use(plan.own_folder)
    try:
        return _run_rank(fabric, plan)
    except InputError as error:
        if ranks.external() and not is_first_report(str(error)):
            raise ReportedElsewhere(str(error)) from error
        raise


def _run_rank(fabric: Fabric, plan: Plan) -> dict[str, Any] | None:
    job, run = _prepared(fabric, plan)
    try:
        job(run=run, fabric=fabric)
    except torch.OutOfMemoryError as error:
        raise InputError(_out_of_memory(plan.config, error)) from error
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise InputError(_not_compiled(error)) from error
        raise
    if not run.leads:
        return None
    return {"state": run.end, "signal": run.signal, "step": run.step, "dir": run.dir} | run.metrics


def _prepared(fabric: Fabric, plan: Plan) -> tuple[Callable[..., None], Run]:
    """The job of a plan, and its run, which alone holds the checkpoint: training frees it."""
    fabric.seed_everything(plan.config["seed"], verbose=False)  # building draws the weights
    path, state = _checkpoint(plan)
    plan = _with_checkpoint(plan, path, state)
    _check_agreed(fabric, plan, path, state)
    if state is not None and path is not None:
        check_fits(plan.config["model"], state, path)
        if not plan.trains:
            state.pop("optimizer", None)  # which takes twice the memory of the weights
    initial = None
    if state is None and plan.trains and plan.config.get("init_from") is not None:
        initial = InitialWeights.of(plan.config)
    job = build(plan.config["job"], "job")
    trackers = build(plan.config["tracker"], "tracker")
    check_installed(trackers)
    return job, Run(plan, fabric, trackers, state, path, initial)


def _check_agreed(
    fabric: Fabric, plan: Plan, path: Path | None, state: dict[str, Any] | None
) -> None:
    """Check that all processes start from the same checkpoint, or all from none.

    Raises:
        InputError: they do not, because their machines see different folders.
    """
    if fabric.world_size == 1:
        return
    own = (plan.output.begun, path and path.name, state and (state["run_id"], state["step"]))
    first = fabric.broadcast(own)
    if any_rank(fabric, torch.tensor(float(own != first), device=fabric.device)):
        raise InputError(
            f"{plan.checkpoint or plan.output.path}: not all processes find the checkpoint of the "
            f"first one ({first[1] or 'none'}). To resume or sample, all machines must see the "
            "same folder: put it on a shared file system."
        )


def _out_of_memory(config: dict[str, Any], error: Exception) -> str:
    """The settings that ran out of memory, and those that need less."""
    job, data = config["job"], config["data"]
    remedies = ["a smaller job.batch_size", "hardware.precision=bf16-mixed"]
    if job.get("recompute") is False:
        remedies.insert(0, "job.recompute=true")
    if (accumulate := job.get("accumulate_grad_batches")) == "auto":
        remedies.insert(0, "a number for job.accumulate_grad_batches instead of auto")
    elif accumulate:
        remedies.insert(0, f"a larger job.accumulate_grad_batches (now {accumulate})")
    return (
        f"job.batch_size={job.get('batch_size')}: not enough memory on the device for images of "
        f"{data['image_size']} pixels with hardware.precision={config['hardware']['precision']} "
        f"({str(error).splitlines()[0][:160]}).\n"
        f"To need less: {', '.join(remedies[:-1])} or {remedies[-1]}."
    )


def _not_compiled(error: Exception) -> str:
    """The message for a failure of torch.compile, with the compiler's first line."""
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line for line in lines if "rror" in line), lines[0] if lines else "")
    if "file too short" in str(error):  # PyTorch writes its cache in place
        cache = shell.bash_word(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))  # PyTorch sets it
        return (
            f"job.compile=true: a file in PyTorch's cache is incomplete ({shown(reason, 200)}), "
            f"because an earlier run was killed while writing it.\nRemove {cache} and run the "
            "same command again."
        )
    return (
        f"job.compile=true: the network cannot be compiled ({shown(reason, 200)}).\n"
        "HYDRA_FULL_ERROR=1 shows the compiler's full report. job.compile=false needs no compiler."
    )


def _checkpoint(plan: Plan) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint that the run starts from; none if it was stopped before it saved the first.

    Raises:
        InputError: the run has newer checkpoints than the named one, or its checkpoints are gone.
    """
    path = plan.checkpoint
    if path is None:
        return None, None
    if plan.output.begun and plan.trains:
        checkpoints = summary.list_checkpoints(plan.output.path / "checkpoints")
        if path.is_dir() and not checkpoints and _never_saved(plan.output.path):
            return None, None
        if path.is_file() and checkpoints and checkpoints[-1].name != path.name:
            raise InputError(
                f"resume={path}: the run has newer checkpoints, up to {checkpoints[-1].name}. "
                "Move them away to go back to this one."
            )
        return checkpoint.find(path)
    planned = plan.config.get("checkpoint")
    return checkpoint.find(path, None if planned is None else Path(planned))


def _never_saved(folder: Path) -> bool:
    """Whether the run in a folder has never written a checkpoint, so that it may start again."""
    status = run_dir.read_status(folder)
    logged = listing.exists(folder / "metrics.jsonl")
    if status.get("state") == "done" or status.get("saved") is not None or (logged and not status):
        return False
    if status:  # a job of a sweep that has not started has none
        print(f"resume   {folder} has no checkpoint yet: from the start")
    return True


def _with_checkpoint(plan: Plan, path: Path | None, state: dict[str, Any] | None) -> Plan:
    """The plan with the checkpoint that was loaded: an older one if the planned one is damaged."""
    if plan.trains or path is None or state is None:
        return plan
    changes: dict[str, Any] = {"checkpoint": str(path.absolute())}
    if isinstance(source := plan.config.get("source"), dict):
        changes |= {"source": source | {"step": state["step"]}}
    return replace(plan, config=plan.config | changes, hparams=plan.hparams | changes)
