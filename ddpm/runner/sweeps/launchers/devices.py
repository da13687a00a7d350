"""Slots of this machine for parallel jobs: its GPUs, or shares of its CPU cores."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from ddpm.errors import InputError
from ddpm.runner.distributed.threads import own_cores


@dataclass(frozen=True)
class Slot:
    """The devices of one job.

    Args:
        name: for messages: "GPU 0", "core (3)".
        variables: environment variables that restrict a process to them.
    """

    name: str
    variables: Mapping[str, str] = field(default_factory=dict)


def find_slots(
    *, gpus: list[int] | str, jobs_per_gpu: int, gpus_per_job: int, cores_per_job: int
) -> list[Slot]:
    """The slots of this machine. conf/hydra/launcher/slots.yaml explains the settings.

    Raises:
        InputError: a setting is invalid, or such a GPU does not exist.
    """
    per_gpu = {"jobs_per_gpu": jobs_per_gpu, "gpus_per_job": gpus_per_job}
    for name, value in (per_gpu | {"cores_per_job": cores_per_job}).items():
        if type(value) is not int or value < 1:
            raise InputError(f"hydra.launcher.{name}={value}: must be a number from 1.")
    if jobs_per_gpu > 1 and gpus_per_job > 1:
        raise InputError(
            f"hydra.launcher.jobs_per_gpu={jobs_per_gpu}: gpus_per_job={gpus_per_job} gives each "
            "job GPUs of its own; set only one of the two."
        )
    chosen = _visible_gpus(gpus)
    return _gpu_slots(chosen, **per_gpu) if chosen else _core_slots(cores_per_job)


def _visible_gpus(gpus: list[int] | str) -> list[str]:
    """The GPUs to use, by their names in CUDA_VISIBLE_DEVICES."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count() if gpus != [] else 0
    names = visible.split(",")[:count] if visible else [str(i) for i in range(count)]
    if gpus == "auto":
        return names
    if not isinstance(gpus, list) or any(type(i) is not int for i in gpus):
        raise InputError(f"hydra.launcher.gpus={gpus}: must be auto or a list of numbers: [0,1].")
    if missing := [i for i in gpus if not 0 <= i < count]:
        raise InputError(
            f"hydra.launcher.gpus={gpus}: GPU {missing[0]} does not exist; this machine has "
            f"{count}."
        )
    return [names[i] for i in dict.fromkeys(gpus)]


def _gpu_slots(gpus: list[str], jobs_per_gpu: int, gpus_per_job: int) -> list[Slot]:
    if gpus_per_job > len(gpus):
        raise InputError(
            f"hydra.launcher.gpus_per_job={gpus_per_job}: this machine has only {len(gpus)} GPUs."
        )
    ends = range(gpus_per_job, len(gpus) + 1, gpus_per_job)
    groups = [gpus[end - gpus_per_job : end] for end in ends]
    # The first job of each GPU before the second of any: half a sweep uses all GPUs.
    return [
        Slot(f"GPU {'+'.join(group)}", {"CUDA_VISIBLE_DEVICES": ",".join(group)})
        for _ in range(jobs_per_gpu)
        for group in groups
    ]


def _core_slots(cores_per_job: int) -> list[Slot]:
    """The CPU cores of this process in equal shares; a job has as many threads as cores."""
    cores = len(own_cores())
    if cores_per_job > cores:
        raise InputError(
            f"hydra.launcher.cores_per_job={cores_per_job}: this machine has only {cores} cores."
        )
    variables = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(cores_per_job)}
    name = "core" if cores_per_job == 1 else f"{cores_per_job} cores"
    return [Slot(f"{name} ({i + 1})", variables) for i in range(cores // cores_per_job)]
