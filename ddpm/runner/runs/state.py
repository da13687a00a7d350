"""The state of a run: derived from its folder in one way, listed in one order."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ddpm.runner.runs import run_dir

ORDER = ("done", "running", "failed", "killed", "preempted", "pruned", "waiting", "unknown")
FINISHED = ("done", "pruned")  # jobs of a sweep in these states are not run again


def current(folder: Path, status: Mapping[str, Any], default: str = "waiting") -> str:
    """The state in the contents of `status.json`, or `default` without one.

    `killed`: it says `running`, but no process holds the folder. `unknown`: not in run_dir.STATES.
    """
    state = status.get("state", default)
    if state not in run_dir.STATES:
        return "unknown"
    return "killed" if state == "running" and not run_dir.is_locked(folder) else state


def counted(states: Iterable[str]) -> str:
    """`7 done, 2 running, 1 failed`."""
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
