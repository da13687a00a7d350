"""Devices, precision and processes: builds Lightning Fabric and fills its gaps."""

import hashlib
import importlib.util
import logging
import os
import resource
import sys
import warnings
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
)
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning_fabric.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import nn

from ddpm.errors import InputError, nearest
from ddpm.runner.distributed import ranks
from ddpm.runner.distributed import threads as cpu_threads

# Only those with float32 weights: EMA and samplers expect these.
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")

logger = logging.getLogger(__name__)
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # we report the same
warnings.filterwarnings("ignore", "The `srun` command is available")  # srun is optional
warnings.filterwarnings("ignore", "This DataLoader will create")  # we warn ourselves


class Sharded(ModelParallelStrategy):
    """FSDP with processes that call a function, as "ddp" does; Fabric's own strategy would run the
    command line again in each. The training loop shards the networks, see `mesh_of`."""

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(parallelize_fn=_unchanged, timeout=timeout)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def _configure_launcher(self) -> None:
        environment = self.cluster_environment
        if environment is not None and not environment.creates_processes_externally:
            self._launcher = _MultiProcessingLauncher(self, "spawn")


def _unchanged(model: nn.Module, mesh: Any) -> nn.Module:
    """A function of the module, since spawned processes receive it pickled."""
    return model


def mesh_of(fabric: Fabric) -> Any:
    """The device mesh to shard a network over; None if each device holds the full network."""
    if isinstance(fabric.strategy, Sharded) and fabric.strategy.device_mesh is not None:
        return fabric.strategy.device_mesh["data_parallel"]
    return None


def fabric(
    *,
    accelerator: str,
    devices: int | str,
    num_nodes: int,
    strategy: str,
    precision: str,
    timeout_minutes: float = 30,
    threads: int | str = "auto",
) -> Fabric:
    """A Fabric for this machine.

    Args:
        accelerator: "auto" (the GPU of CUDA if there is one, else the CPU), "cpu", "gpu", "cuda",
            or "mps", which nothing was tested on.
        devices: how many, or "auto" for all.
        num_nodes: machines; more than one needs torchrun or Slurm to start the processes.
        strategy: "auto", "ddp", "fsdp", ...; "ddp" and "fsdp" start processes that call a function.
            Fabric's default, running the command line again in each, would repeat a whole sweep.
        precision: "auto" (bf16-mixed if the hardware supports it natively, else 32-true), or one of
            Fabric's.
        timeout_minutes: how long processes wait for each other before the run is aborted.
        threads: CPU threads of a single process; "auto": one for each idle core.

    Raises:
        InputError: the machine lacks what was requested.
    """
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(
            f"hardware.accelerator={accelerator}: this machine has no GPU that PyTorch can use. "
            "Choose hardware=cpu or hardware=auto."
        )
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise InputError(
            "hardware.accelerator=mps: this machine has no Apple GPU that PyTorch can use. Choose "
            "hardware=cpu or hardware=auto."
        )
    external = ranks.external()
    devices, num_nodes = _processes(devices, num_nodes, external)
    if not timeout_minutes > 0:
        raise InputError(f"hardware.timeout_minutes={timeout_minutes}: must be above 0.")
    if not (threads == "auto" or (type(threads) is int and threads >= 1)):
        raise InputError(f"hardware.threads={threads}: must be a number from 1, or 'auto'.")
    _check_precision(str(precision), accelerator, strategy)
    if precision == "auto":
        precision = "bf16-mixed" if fast_bf16(_device(accelerator)) else "32-true"
    alone = not external and devices == 1 and num_nodes == 1
    if alone and _device(accelerator).type == "cpu":
        _set_threads(threads)
    timeout = timedelta(minutes=timeout_minutes)
    try:
        return Fabric(
            accelerator=_device(accelerator).type if accelerator == "auto" else accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=_strategy(strategy, alone, external, timeout),
            precision=precision,  # type: ignore[arg-type]  # checked above
            plugins=_environment(),
        )
    except (ValueError, TypeError, RuntimeError) as error:
        given = {"strategy": strategy, "accelerator": accelerator}
        keys = [f"hardware.{k}={v}" for k, v in given.items() if f"'{v}'" in str(error)]
        raise InputError(f"{(keys or ['hardware'])[0]}: {error}") from error


def _processes(devices: int | str, num_nodes: int, external: bool) -> tuple[int | str, int]:
    """Processes of each machine, and machines; where torchrun starts them, it defines both.

    Raises:
        InputError: invalid devices, or nothing starts processes on several machines.
    """
    if not (devices == "auto" or (isinstance(devices, int) and devices >= 1)):
        raise InputError(f"hardware.devices={devices}: must be a number from 1, or 'auto'.")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        return per_node, int(os.environ["WORLD_SIZE"]) // per_node
    if num_nodes > 1 and not external:
        raise InputError(
            f"hardware.num_nodes={num_nodes}: start the processes by torchrun or Slurm."
        )
    return devices, num_nodes


def _set_threads(wanted: int | str) -> None:
    """Set the number of CPU threads, with a warning if it is less than expected."""
    count, why = cpu_threads.choose(wanted)
    torch.set_num_threads(count)
    if why:
        logger.warning("%s", why)


def _environment() -> ClusterEnvironment | None:
    """The launcher of the processes; Fabric would decide by the name of the Slurm job."""
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_JOB_ID" not in os.environ:
        return None
    return SLURMEnvironment() if ranks.by_srun() else LightningEnvironment()


def _strategy(name: str, alone: bool, external: bool, timeout: timedelta) -> str | Strategy:
    """Fabric's strategy for several processes; a single process needs none."""
    if name == "fsdp":
        return Sharded(timeout)
    if name == "ddp":
        if alone:
            return "auto"
        # With an external launcher, "popen" starts no processes.
        return DDPStrategy(start_method="popen" if external else "spawn", timeout=timeout)
    return name


def _check_precision(precision: str, accelerator: str, strategy: str) -> None:
    """Refuse unknown precisions, and float16 where it is emulated.

    Raises:
        InputError: names the alternatives.
    """
    if precision not in PRECISIONS:
        hint = nearest(precision, PRECISIONS)
        raise InputError(
            f"hardware.precision={precision}: must be one of {', '.join(PRECISIONS)}.{hint}"
        )
    if strategy == "fsdp" and precision not in ("auto", "32-true", "32", "bf16-mixed", "bf16"):
        raise InputError(
            f"hardware.precision={precision}: hardware=fsdp supports 32-true, bf16-mixed and auto."
        )
    if precision in ("16", "16-mixed") and _device(accelerator).type == "cpu":
        raise InputError(
            f"hardware.precision={precision}: needs a GPU; on a CPU float16 is a hundred times "
            "slower. Use bf16-mixed, 32-true, or auto for the faster one."
        )


def _device(accelerator: str) -> torch.device:
    """The type of device that Fabric will use. Fabric's own "auto" would take an Apple GPU."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if accelerator == "mps" else "cpu")


def fast_bf16(device: torch.device) -> bool:
    """Whether networks run faster in bfloat16 than in float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities: dict[str, Any] = dict(torch.cpu.get_capabilities())
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def check_compiler(device: torch.device) -> None:
    """Check that torch.compile finds its compiler: C++ for a CPU, Triton for a GPU.

    Raises:
        InputError: it is not installed.
    """
    if device.type == "cuda":
        missing = None if importlib.util.find_spec("triton") else "Triton (pip install triton)"
    elif device.type == "cpu":
        missing = None if _has_cpp_compiler() else "a C++ compiler, g++ or clang++ (or CXX=...)"
    else:
        return
    if missing:
        raise InputError(
            f"job.compile=true: torch.compile needs {missing} on this device, which is missing. "
            "Install it, or leave out job.compile."
        )


def _has_cpp_compiler() -> bool:
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return False
    return True


def describe(fabric: Fabric) -> str:
    """Device, processes and precision in one line, printed when a run starts."""
    device = fabric.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    processes = f"{fabric.world_size} x " if fabric.world_size > 1 else ""
    return f"{processes}{name}{threads}, {fabric.strategy.precision.precision}"


def memory(device: torch.device) -> float:
    """Memory of this process in megabytes: the peak on a GPU, the current use on a CPU. Pages of
    the memory-mapped data set do not count: the system can drop them."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        with open("/proc/self/statm") as file:
            _, resident, shared = (int(word) for word in file.read().split()[:3])
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:  # not on Linux: the peak
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak that `memory` reports for a GPU, to exclude trial steps and earlier runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def is_first_report(text: str) -> bool:
    """Whether no other process of the run has reported this text."""
    if not torch.distributed.is_initialized():
        return True
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return store.add(f"reported/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
    except RuntimeError:  # rank 0, which hosts the store, has ended and reported why
        return False


def starts_processes(fabric: Fabric) -> bool:
    """Whether `launch` calls its function in new processes instead of this one."""
    return hasattr(fabric.strategy.launcher, "_start_method")
