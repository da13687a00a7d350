"""Files in the folder of a training run that ask it for something now: `sample` and `checkpoint`.

Like the file `stop` (stop_file.py) they reach a run on any machine that shares the folder. The run
removes a file before it obeys, so each file counts once.
"""

from pathlib import Path

SAMPLE = "sample"  # draw a preview
CHECKPOINT = "checkpoint"  # save a checkpoint
FILES = (SAMPLE, CHECKPOINT)


def ask(folder: Path, name: str) -> None:
    """Ask the run in a folder for a preview or a checkpoint.

    Raises:
        OSError: the folder is gone or cannot be written to.
    """
    (folder / name).touch()


def take(folder: Path, name: str) -> bool:
    """Remove a request; whether there was one."""
    try:
        (folder / name).unlink()
    except OSError:
        return False
    return True


def forget(folder: Path) -> None:
    """Remove the requests of an earlier start."""
    for name in FILES:
        take(folder, name)
