"""A planned run, brought to life: processes, parts, the job, and what came of it."""

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
from ddpm.runner.checkpoints import checkpoint, summary
from ddpm.runner.config.build import build
from ddpm.runner.config.plan import Plan
from ddpm.runner.distributed import ranks, signals
from ddpm.runner.distributed.fabric import is_first_report, starts_processes
from ddpm.runner.distributed.reduce import any_rank
from ddpm.runner.execution.run import Run
from ddpm.runner.runs import run_dir
from ddpm.runner.safe_io import listing
from ddpm.runner.terminal import shell, streams

# Fabric leaves these behind, and the next run of a sweep would take them for its own.
_LEFT_BEHIND = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def launch(plan: Plan) -> dict[str, Any] | None:
    """Run a plan on the hardware it names: state, step, dir and the last figures.

    None where another process leads and tells, under torchrun or Slurm.

    Raises:
        InputError: the user has to change something.
    """
    before = {name: os.environ.get(name) for name in _LEFT_BEHIND}
    with ranks.report_once():
        fabric: Fabric = build(plan.config["hardware"], "hardware")
    # as one callable: Fabric takes the arguments of a function apart
    rank = functools.partial(run_rank, plan=plan)
    try:
        return _in_children(fabric, rank) if starts_processes(fabric) else fabric.launch(rank)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _in_children(fabric: Fabric, rank: Callable[[Fabric], Any]) -> Any:
    """Run a function in processes of its own; tell of one that was killed.

    Raises:
        StoppedAtOnce: it was while it started, by a signal that asked all of us to stop.
        InputError: the machine killed it.
    """
    with signals.to_children() as received:
        try:
            return fabric.launch(rank)
        except ProcessExitedException as error:
            if received:
                raise signals.StoppedAtOnce(received[0], "before the first step") from None
            raise InputError(
                f"a process of the run is gone ({shown(error)}); often because memory is short. "
                "Its folder can be resumed."
            ) from error
        except OSError as error:  # of this process, before any of them has begun
            reason = shown(error.strerror or error)
            raise InputError(
                f"The processes of the run cannot be started ({reason}). They need shared memory "
                "(on Linux /dev/shm) and room in memory; hardware.devices=1 needs no processes."
            ) from error


def run_rank(fabric: Fabric, plan: Plan) -> dict[str, Any] | None:
    """What each process does.

    Raises:
        InputError: the user has to change something; ReportedElsewhere where another process of the
            same run has said so in the same words.
    """
    streams.protect()  # where this process was spawned for the run
    try:
        return _run_rank(fabric, plan)
    except InputError as error:
        if ranks.external() and not is_first_report(str(error)):
            raise ReportedElsewhere(str(error)) from error
        raise


def _run_rank(fabric: Fabric, plan: Plan) -> dict[str, Any] | None:
    fabric.seed_everything(plan.config["seed"], verbose=False)  # weights are drawn while building
    path, state = _checkpoint(plan)
    plan = _with_checkpoint(plan, path, state)
    _check_agreed(fabric, plan, path, state)
    if state is not None and path is not None:
        check_fits(plan.config["model"], state, path)
    job = build(plan.config["job"], "job")
    run = Run(plan, fabric, build(plan.config["tracker"], "tracker"), state, path)
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


def _check_agreed(
    fabric: Fabric, plan: Plan, path: Path | None, state: dict[str, Any] | None
) -> None:
    """Check that all processes start from the same checkpoint, or all from none.

    Raises:
        InputError: they do not, because their machines have different folders.
    """
    if fabric.world_size == 1:
        return
    own = (plan.output.begun, path and path.name, state and (state["run_id"], state["step"]))
    first = fabric.broadcast(own)
    if any_rank(fabric, torch.tensor(float(own != first), device=fabric.device)):
        raise InputError(
            f"{plan.checkpoint or plan.output.path}: not all processes find the checkpoint that "
            f"the first one finds ({first[1] or 'none'}). To resume or to sample, all machines "
            "need the same folder: put it on a file system that they share."
        )


def _out_of_memory(config: dict[str, Any], error: Exception) -> str:
    """What did not fit, and what would."""
    job, data = config["job"], config["data"]
    accumulate = job.get("accumulate_grad_batches")
    smaller = (
        f"a larger job.accumulate_grad_batches (now {accumulate})"
        if accumulate
        else "a smaller batch"
    )
    if accumulate == "auto":
        smaller = "a number for job.accumulate_grad_batches instead of auto"
    more = "job.recompute=true, " if job.get("recompute") is False else ""
    return (
        f"job.batch_size={job.get('batch_size')}: the device has not enough memory for images of "
        f"{data['image_size']} pixels with hardware.precision={config['hardware']['precision']} "
        f"({str(error).splitlines()[0][:160]}).\n{smaller[0].upper()}{smaller[1:]}, a smaller "
        f"job.batch_size, {more}or hardware.precision=bf16-mixed needs less."
    )


def _not_compiled(error: Exception) -> str:
    """That torch.compile failed, with the first line of what the compiler says."""
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line for line in lines if "rror" in line), lines[0] if lines else "")
    if "file too short" in str(error):  # PyTorch writes its cache in place
        cache = shell.bash_word(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))  # PyTorch sets it
        return (
            f"job.compile=true: a compiled file is incomplete ({shown(reason, 200)}): an earlier "
            f"run was killed while it was written.\nRemove PyTorch's cache, {cache}, and run the "
            "same command again."
        )
    return (
        f"job.compile=true: the network cannot be compiled here ({shown(reason, 200)}).\n"
        "HYDRA_FULL_ERROR=1 shows all of the compiler's report. Without job.compile it runs."
    )


def _checkpoint(plan: Plan) -> tuple[Path | None, dict[str, Any] | None]:
    """Where the run starts from; a run that was stopped before its first checkpoint, from zero.

    Raises:
        InputError: the run has newer checkpoints than the one it is to go on from, or had some and
            has none any more.
    """
    path = plan.checkpoint
    if path is None:
        return None, None
    if plan.output.begun and plan.trains:
        found = summary.list_checkpoints(plan.output.path / "checkpoints")
        if path.is_dir() and not found:
            status = run_dir.read_status(plan.output.path)
            begun = listing.exists(plan.output.path / "metrics.jsonl")
            if (
                status.get("state") != "done"
                and status.get("saved") is None
                and (status or not begun)
            ):
                if status:  # else it was never begun: a job of a sweep
                    print(f"resume   {path} has no checkpoint yet: from the start")
                return None, None
        if path.is_file() and found and found[-1].name != path.name:
            raise InputError(
                f"resume={path}: the run has newer checkpoints, up to {found[-1].name}. "
                "Move them away to go back to this one."
            )
        return checkpoint.find(path)
    planned = plan.config.get("checkpoint")
    return checkpoint.find(path, None if planned is None else Path(planned))


def _with_checkpoint(plan: Plan, path: Path | None, state: dict[str, Any] | None) -> Plan:
    """The plan with the checkpoint that was loaded: an older one, if the planned one is damaged."""
    if plan.trains or path is None or state is None:
        return plan
    changes: dict[str, Any] = {"checkpoint": str(path.absolute())}
    if isinstance(source := plan.config.get("source"), dict):
        changes |= {"source": source | {"step": state["step"]}}
    return replace(plan, config=plan.config | changes, hparams=plan.hparams | changes)
