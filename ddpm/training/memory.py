"""Memory: of operations on tensors, and free on the machine."""

import platform
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpm.models import winograd

_DEVICE_OF = torch.ops.prim.device.default  # the device that a fake tensor stands for

# glibc's malloc loses about a quarter of the memory to fragmentation: benchmarks/memory.py measured
# 1.3 to 1.4 allocated bytes for each byte in use. Blocks of 32 MiB and more are mapped one by one,
# without loss.
MALLOC_LOSS, MALLOC_LARGE = 1.35, 32 * 2**20


def with_loss(device: torch.device, scale: float) -> Callable[[int], int]:
    """A function from the bytes of a tensor to the bytes allocated for it on a device; in the real
    run the tensor is `scale` times as large."""
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return int
    return lambda size: round(size * MALLOC_LOSS) if size * scale < MALLOC_LARGE else size


def workspaces(device: torch.device, growth: float) -> int:
    """Bytes in which kernels compute, if batches become `growth` times as large as they were since
    `winograd.reset_sizes`.

    On a GPU cuBLAS has them: PyTorch gives it 32 MiB since Hopper, 8 MiB before, for the threads
    of the forward and the backward pass each, in a recorded graph and outside of it.
    """
    if device.type != "cuda":
        return winograd.kept_bytes(growth) if device.type == "cpu" else 0
    return 4 * (32 if torch.cuda.get_device_capability(device) >= (9, 0) else 8) * 2**20


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors, real or fake, that are allocated while it is active.

    Earlier tensors and views do not count. Scratch memory inside kernels is invisible.

    Args:
        weigh: from the bytes of a tensor to the bytes allocated for it.

    Attributes:
        live: bytes of the tensors that exist now.
        after: `live` after each operation.
    """

    def __init__(self, weigh: Callable[[int], int] = int) -> None:
        super().__init__()
        self.weigh = weigh
        self.live = 0
        self.after: list[int] = []
        self._known: set[int] = set()

    @property
    def peak(self) -> int:
        return max(self.after, default=0)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise PyTorch imports its compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE_OF:
            return func(*args)
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            self._see(tensor, counts=False)
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            self._see(tensor, counts=True)
        self.after.append(self.live)
        return result

    def _see(self, tensor: Any, *, counts: bool) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            size = self.weigh(storage.nbytes()) if counts else 0
            self.live += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def available(device: torch.device) -> int | None:
    """Bytes that this process can still allocate on a device; None if unknown.

    On a GPU this includes the unused part of PyTorch's cache. On a CPU it is the memory available
    without swapping, or less if a control group (of a container, Slurm) has a limit.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    limits = [size for size in (_machine(), *_control_groups()) if size is not None]
    return min(limits, default=None)


def _machine(file: Path = Path("/proc/meminfo")) -> int | None:
    """Linux's estimate of the memory available to new programs."""
    return _entry(file, "MemAvailable:", 1024)


def _control_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Bytes left under the limits of this process's control groups, versions 1 and 2."""
    left = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "memory"
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):  # limits of parent groups hold, too
            limit, used = (_number(folder / name) for name in names[:2])
            if limit is not None and used is not None and limit < 2**60:  # above: none
                cache = _entry(folder / "memory.stat", names[2], 1) or 0  # reclaimable
                left.append(max(0, limit - used + cache))
            if folder == top:
                break
    return left


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _read(file).strip()
    return int(text) if text.isdecimal() else None  # "max": no limit


def _entry(file: Path, name: str, unit: int) -> int | None:
    """The number in the line `<name> <number>` of a file, times `unit`."""
    for line in _read(file).splitlines():
        words = line.split()
        if words[:1] == [name] and len(words) > 1 and words[1].isdecimal():
            return int(words[1]) * unit
    return None


def text(size: float) -> str:
    """1_340_000_000 as "1.3 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
