"""Where jobs can run side by side on this machine: its GPUs, or shares of its CPU cores."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ddpm.errors import InputError


@dataclass(frozen=True)
class Place:
    """What one job may use.

    Args:
        name: for people: "GPU 0", "core 3".
        variables: of the environment, which keep a process to it.
    """

    name: str
    variables: Mapping[str, str] = field(default_factory=dict)


def find(
    *, gpus: list[int] | str, jobs_per_gpu: int, gpus_per_job: int, cores_per_job: int
) -> list[Place]:
    """The places of this machine. conf/hydra/launcher/slots.yaml says what the knobs mean.

    Raises:
        InputError: a knob has an impossible value, or there are no such GPUs.
    """
    knobs = {"jobs_per_gpu": jobs_per_gpu, "gpus_per_job": gpus_per_job}
    for name, value in (knobs | {"cores_per_job": cores_per_job}).items():
        if type(value) is not int or value < 1:
            raise InputError(f"hydra.launcher.{name}={value}: must be a number from 1.")
    if jobs_per_gpu > 1 and gpus_per_job > 1:
        raise InputError(
            f"hydra.launcher.jobs_per_gpu={jobs_per_gpu}: with gpus_per_job={gpus_per_job} a job "
            "has its GPUs alone; set one of the two."
        )
    chosen = _gpus(gpus)
    return _on_gpus(chosen, **knobs) if chosen else _on_cores(cores_per_job)


def _gpus(asked: list[int] | str) -> list[str]:
    """The GPUs to use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count() if asked != [] else 0
    there = visible.split(",")[:count] if visible else [str(i) for i in range(count)]
    if asked == "auto":
        return there
    if not isinstance(asked, list) or any(type(i) is not int for i in asked):
        raise InputError(f"hydra.launcher.gpus={asked}: must be auto or a list of numbers: [0,1].")
    if missing := [i for i in asked if not 0 <= i < count]:
        raise InputError(
            f"hydra.launcher.gpus={asked}: there is no GPU {missing[0]}; this machine has {count}."
        )
    return [there[i] for i in dict.fromkeys(asked)]


def _on_gpus(gpus: list[str], jobs_per_gpu: int, gpus_per_job: int) -> list[Place]:
    if gpus_per_job > len(gpus):
        raise InputError(
            f"hydra.launcher.gpus_per_job={gpus_per_job}: there are only {len(gpus)} GPUs."
        )
    ends = range(gpus_per_job, len(gpus) + 1, gpus_per_job)
    groups = [gpus[end - gpus_per_job : end] for end in ends]
    # The first job of each GPU before the second of any: half a sweep uses them all.
    return [
        Place(f"GPU {'+'.join(group)}", {"CUDA_VISIBLE_DEVICES": ",".join(group)})
        for _ in range(jobs_per_gpu)
        for group in groups
    ]


def _on_cores(cores_per_job: int) -> list[Place]:
    """CPU cores this process may use, shared out; a job's threads are as many as its cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cores_per_job > cores:
        raise InputError(
            f"hydra.launcher.cores_per_job={cores_per_job}: there are only {cores} cores."
        )
    variables = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(cores_per_job)}
    word = "core" if cores_per_job == 1 else f"{cores_per_job} cores"
    return [Place(f"{word} ({i + 1})", variables) for i in range(cores // cores_per_job)]


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """While open, these variables are set: for the process that is started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
