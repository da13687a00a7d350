"""Number of CPU threads of a run, and how long OpenMP spins.

A parallel loop ends with its slowest thread. On a core that another program keeps busy, a thread
gets half of the time, and the threads that have finished wait for it; by default they spin, which
blocks their cores: on two cores, one of them busy, a run falls to a tenth of its speed. So a run
uses as many threads as there are idle cores, and OpenMP spins for some microseconds only: shorter
than a busy core delays a thread, longer than the time between two parallel loops.
"""

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

SPINS = "1000"  # iterations of GNU OpenMP's spin loop, about 10 us; its default is 300,000
SHORTEST = 1.0  # seconds over which the load is measured, at least
_STAT = Path("/proc/stat")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class Usage(NamedTuple):
    """Seconds: wall clock, CPU time of all processes on our cores, CPU time of this process and its
    children."""

    clock: float
    total: float
    own: float


_at_start: Usage | None = None
_default: int | None = None


def begin() -> None:
    """Call before torch is imported: OpenMP reads its variables at import."""
    global _at_start
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    _at_start = usage()


def choose(wanted: int | str) -> tuple[int, str | None]:
    """The number of threads, and a warning where it is less than expected.

    Args:
        wanted: a number, or "auto": one for each idle core, or the value of `OMP_NUM_THREADS`.
    """
    global _at_start, _default
    import torch

    if _default is None:
        _default = torch.get_num_threads()
    if wanted != "auto":
        return int(wanted), None
    if "OMP_NUM_THREADS" in os.environ:
        return _default, None
    since, _at_start = _at_start, usage()
    most = min(_default, quota() or _default)
    busy = 0.0
    if since and _at_start and _at_start.clock - since.clock >= SHORTEST:
        busy = busy_cores(since, _at_start)
    count = max(1, min(most, len(own_cores()) - round(busy)))
    if count == most:
        return count, None
    cores = len(own_cores())
    return count, (
        f"other programs keep about {busy:.1f} of {cores} cores busy: this run uses {count} "
        f"thread{'s' if count > 1 else ''}; hardware.threads={most} uses more"
    )


def busy_cores(start: Usage, end: Usage) -> float:
    """How many of our cores other processes kept busy between two measurements."""
    return (end.total - start.total - (end.own - start.own)) / (end.clock - start.clock)


def own_cores() -> set[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def quota() -> int | None:
    """The CPU limit of the container in cores; None without a limit, or if it is unknown."""
    with suppress(OSError, ValueError):
        limit, period = _QUOTA.read_text().split()
        return math.ceil(int(limit) / int(period))  # ValueError for "max"
    return None


def usage() -> Usage | None:
    """CPU time used so far; None where the system does not report it."""
    try:
        ticks = os.sysconf("SC_CLK_TCK")
        total = sum(_busy_ticks(line) for line in _STAT.read_text().splitlines())
    except (OSError, ValueError, AttributeError):
        return None
    mine = os.times()
    return Usage(time.monotonic(), total / ticks, sum(mine[:4]))


def _busy_ticks(line: str) -> int:
    """The ticks for which one of our cores was busy, from a line of /proc/stat.

    `cpu0 user nice system idle iowait irq softirq steal ...`: steal, the time that the host of a
    virtual machine takes, is not counted, since fewer threads would not reduce it.
    """
    name, *numbers = line.split()
    if not name[3:].isdigit() or not name.startswith("cpu") or int(name[3:]) not in own_cores():
        return 0
    user, nice, system, _idle, _iowait, irq, softirq = (int(number) for number in numbers[:7])
    return user + nice + system + irq + softirq
