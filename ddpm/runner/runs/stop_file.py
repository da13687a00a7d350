"""A file `stop` in a run's folder requests the run to stop.

Unlike a signal, it also reaches runs on other machines. Users may `touch` it; a sweeper writes
"pruned" into it, which ends the run for good.
"""

from pathlib import Path

from ddpm.runner.safe_io import atomic

FILE = "stop"


def to_stop(folder: Path, state: str = "preempted") -> None:
    """Request the run to end as "preempted", to be resumed later, or as "pruned"."""
    atomic.write(folder / FILE, state)  # a part of "pruned" would be read as "preempted"


def end_of(folder: Path) -> str | None:
    """The requested end state, "preempted" or "pruned"; None if no stop was requested."""
    try:
        content = (folder / FILE).read_bytes()[:20].strip()
    except OSError:
        return None
    return "pruned" if content == b"pruned" else "preempted"


def forget(folder: Path) -> None:
    """Remove the request of an earlier start."""
    (folder / FILE).unlink(missing_ok=True)
