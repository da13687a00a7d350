"""How many threads a run takes on the CPU, and how long they wait for each other.

A parallel loop ends when its last thread has ended. Where another program keeps a core busy, one
thread gets half of that core, and those that have finished wait for it, by default in a loop of
their own that keeps their cores from being of use: a run on two cores, one of them busy, falls to a
tenth of its speed. So the threads of a run are as many as there are idle cores, and they wait in
a loop only for some microseconds, which is shorter than a busy core keeps them waiting and longer
than the time between two loops.
"""

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

SPINS = "1000"  # turns of GNU OpenMP's waiting loop, about 10 us; its own default is 300,000
SHORTEST = 1.0  # seconds; what other programs did in less says little
_STAT = Path("/proc/stat")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class Usage(NamedTuple):
    """Seconds: of a clock, of all processes on our cores, of this process and its children."""

    clock: float
    total: float
    own: float


_before: Usage | None = None
_default: int | None = None


def begin() -> None:
    """To be called first of all, before torch is imported: OpenMP reads its variables then."""
    global _before
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    _before = usage()


def choose(wanted: int | str) -> tuple[int, str | None]:
    """The number of threads, and a word on it where it is not what one would expect.

    Args:
        wanted: so many; "auto": as many as there are idle cores, or what `OMP_NUM_THREADS` says.
    """
    global _before, _default
    import torch

    if _default is None:
        _default = torch.get_num_threads()
    if wanted != "auto":
        return int(wanted), None
    if "OMP_NUM_THREADS" in os.environ:
        return _default, None
    since, _before = _before, usage()
    most = min(_default, quota() or _default)
    busy = 0.0
    if since and _before and _before.clock - since.clock >= SHORTEST:
        busy = busy_cores(since, _before)
    count = max(1, min(most, len(own_cores()) - round(busy)))
    if count == most:
        return count, None
    cores = len(own_cores())
    return count, (
        f"other programs keep about {busy:.1f} of {cores} cores busy: this run takes {count} "
        f"thread{'s' if count > 1 else ''}; hardware.threads={most} takes more"
    )


def busy_cores(before: Usage, now: Usage) -> float:
    """How many of our cores other processes kept busy between two moments."""
    return (now.total - before.total - (now.own - before.own)) / (now.clock - before.clock)


def own_cores() -> set[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def quota() -> int | None:
    """How many cores' time a container's limit leaves; None: there is none, or it is not known."""
    with suppress(OSError, ValueError):
        limit, period = _QUOTA.read_text().split()
        return math.ceil(int(limit) / int(period))  # "max" is no number
    return None


def usage() -> Usage | None:
    """What was used until now; None: the system does not say."""
    try:
        ticks = os.sysconf("SC_CLK_TCK")
        total = sum(_busy_ticks(line) for line in _STAT.read_text().splitlines())
    except (OSError, ValueError, AttributeError):
        return None
    mine = os.times()
    return Usage(time.monotonic(), total / ticks, sum(mine[:4]))


def _busy_ticks(line: str) -> int:
    """Of a line of /proc/stat: the ticks that one of our cores was busy.

    `cpu0 user nice system idle iowait irq softirq steal ...`: what the host of a virtual machine
    takes (steal) is no program that could be made way for.
    """
    name, *numbers = line.split()
    if not name[3:].isdigit() or not name.startswith("cpu") or int(name[3:]) not in own_cores():
        return 0
    user, nice, system, _idle, _iowait, irq, softirq = (int(number) for number in numbers[:7])
    return user + nice + system + irq + softirq
