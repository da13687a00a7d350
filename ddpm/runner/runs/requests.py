"""Files in the folder of a run that request something of it: `stop`, `sample` and `checkpoint`.

Unlike a signal, they also reach a run on another machine that shares the folder. Users may `touch`
them. A sweeper writes "pruned" into `stop`, which ends the run for good. The run removes the other
two before it obeys, so that each file counts once.
"""

from pathlib import Path

from ddpm.runner.safe_io import atomic

STOP = "stop"  # save and end
SAMPLE = "sample"  # draw a preview
CHECKPOINT = "checkpoint"  # save a checkpoint
ONCE = (SAMPLE, CHECKPOINT)


def ask(folder: Path, name: str) -> None:
    """Request a preview or a checkpoint from the run in a folder.

    Raises:
        OSError: the folder is gone or cannot be written to.
    """
    (folder / name).touch()


def ask_to_stop(folder: Path, state: str = "preempted") -> None:
    """Request the run to end as "preempted", to be resumed later, or as "pruned"."""
    atomic.write(folder / STOP, state)  # a part of "pruned" would be read as "preempted"


def end_state(folder: Path) -> str | None:
    """The requested end state, "preempted" or "pruned"; None if no stop was requested."""
    try:
        content = (folder / STOP).read_bytes()[:20].strip()
    except OSError:
        return None
    return "pruned" if content == b"pruned" else "preempted"


def take(folder: Path, name: str) -> bool:
    """Remove a request that counts once; whether there was one."""
    try:
        (folder / name).unlink()
    except OSError:
        return False
    return True


def forget(folder: Path) -> None:
    """Remove the requests of an earlier start."""
    (folder / STOP).unlink(missing_ok=True)
    for name in ONCE:
        take(folder, name)
