"""Devices, precision and processes: the arguments of Lightning Fabric, and what it leaves open."""

import logging
import os
import warnings
from typing import Any

import torch
from lightning_fabric import Fabric

from ddpm.errors import InputError, nearest

# Where somebody else has started the processes already: torchrun, Slurm.
_EXTERNAL_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS")

PRECISIONS = (
    *("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true"),
    *("32", "bf16", "16", "64", "transformer-engine", "transformer-engine-float16"),
)

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # our first lines say it all
warnings.filterwarnings("ignore", "The `srun` command is available")  # and need not be used
warnings.filterwarnings("ignore", "This DataLoader will create")  # rules.py has a shorter word


def fabric(
    *, accelerator: str, devices: int | str, num_nodes: int, strategy: str, precision: str
) -> Fabric:
    """A Fabric for the machine at hand.

    Args:
        accelerator: "auto", "cpu", "gpu", "cuda", "mps".
        devices: how many, or "auto" for all there are.
        num_nodes: machines; more than one needs torchrun or Slurm to start the processes.
        strategy: "auto", "ddp", ...; "ddp" starts its own processes by calling a function in each.
            Fabric's own way, starting the command line again, would repeat a whole sweep.
        precision: "auto" (bf16-mixed where the hardware is fast at it, else 32-true), or one of
            Fabric's.

    Raises:
        InputError: the machine has not what was asked for.
    """
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(
            f"hardware.accelerator={accelerator}: this machine has no GPU that PyTorch can use. "
            "Choose hardware=cpu or hardware=auto."
        )
    if not (devices == "auto" or (isinstance(devices, int) and devices >= 1)):
        raise InputError(f"hardware.devices={devices}: must be a number from 1, or 'auto'.")
    external = any(name in os.environ for name in _EXTERNAL_LAUNCHERS)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has said already how many there are
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif num_nodes > 1 and not external:
        raise InputError(
            f"hardware.num_nodes={num_nodes}: start the processes by torchrun or Slurm."
        )
    if strategy == "ddp" and not external:
        strategy = "auto" if devices == 1 and num_nodes == 1 else "ddp_spawn"
    _check_precision(str(precision), accelerator)
    if precision == "auto":
        precision = "bf16-mixed" if fast_bf16(_device(accelerator)) else "32-true"
    try:
        return Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=precision,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        given = {"strategy": strategy, "accelerator": accelerator}
        keys = [f"hardware.{k}={v}" for k, v in given.items() if f"'{v}'" in str(error)]
        raise InputError(f"{(keys or ['hardware'])[0]}: {error}") from error


def _check_precision(precision: str, accelerator: str) -> None:
    """Refuse what Fabric does not know, and float16 where it is emulated.

    Raises:
        InputError: says what to use instead.
    """
    if precision not in PRECISIONS:
        hint = nearest(precision, PRECISIONS)
        raise InputError(
            f"hardware.precision={precision}: must be one of {', '.join(PRECISIONS)}.{hint}"
        )
    if precision in ("16", "16-mixed", "16-true") and _device(accelerator).type == "cpu":
        raise InputError(
            f"hardware.precision={precision}: needs a GPU; on a CPU float16 is a hundred times "
            "slower. Use bf16-mixed or 32-true, or auto for the faster of both."
        )


def _device(accelerator: str) -> torch.device:
    """The kind of device that Fabric will take."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def fast_bf16(device: torch.device) -> bool:
    """Whether networks run faster in bfloat16 than in float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities: dict[str, Any] = dict(torch.cpu.get_capabilities())
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def describe(made: Fabric) -> str:
    """One line for the start of a run: device, processes, precision."""
    device = made.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    processes = f"{made.world_size} x " if made.world_size > 1 else ""
    return f"{processes}{name}{threads}, {made._precision.precision}"


def starts_processes(made: Fabric) -> bool:
    """Whether `launch` calls its function in new processes, and not in this one."""
    return hasattr(made.strategy.launcher, "_start_method")
