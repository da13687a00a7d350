"""A file `stop` in a run's folder asks it to stop, from wherever the folder can be seen.

Signals reach processes of one machine; a file reaches a run on any. Whoever wants a run to stop may
`touch` it; a sweeper writes "pruned" into it, and the run is over then.
"""

from pathlib import Path

from ddpm.runner.safe_io import atomic

FILE = "stop"


def to_stop(folder: Path, state: str = "preempted") -> None:
    """Ask the run in this folder to end as "preempted", to go on later, or as "pruned"."""
    atomic.write(folder / FILE, state)  # half of "pruned" would read as "preempted"


def end_of(folder: Path) -> str | None:
    """As what the run was asked to end; None: it was not."""
    try:
        word = (folder / FILE).read_bytes()[:20].strip()
    except OSError:
        return None
    return "pruned" if word == b"pruned" else "preempted"


def forget(folder: Path) -> None:
    """A run that begins or goes on has not been asked yet."""
    (folder / FILE).unlink(missing_ok=True)
