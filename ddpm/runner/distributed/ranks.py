"""The rank of this process, read from the environment of torchrun or Slurm: torch is not needed."""

import contextlib
import logging
import os
from collections.abc import Iterator

from ddpm.errors import InputError, ReportedElsewhere


def external() -> bool:
    """Whether torchrun or Slurm starts the processes of this run."""
    return "TORCHELASTIC_RUN_ID" in os.environ or by_srun()


def by_srun() -> bool:
    """Whether `srun` started several processes. SLURM_NTASKS would be misleading: the batch script
    and an interactive shell see it, too, and run once."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    return tasks.isdigit() and int(tasks) > 1


def is_rank_zero() -> bool:
    """Whether this process is rank 0, which reports progress and results."""
    return _rank("RANK", "SLURM_PROCID") == 0


def is_local_rank_zero() -> bool:
    """Whether this process is the first of its machine. It reports errors that arise before the
    processes are connected, since they may concern its machine only."""
    return _rank("LOCAL_RANK", "SLURM_LOCALID") == 0


@contextlib.contextmanager
def report_once() -> Iterator[None]:
    """Errors and warnings raised inside are reported by local rank 0 only.

    Raises:
        ReportedElsewhere: in place of an InputError, in the other processes.
    """
    if is_local_rank_zero():
        yield
        return
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    except InputError as error:
        raise ReportedElsewhere(str(error)) from error
    finally:
        logging.root.setLevel(level)


def _rank(torchrun: str, slurm: str) -> int:
    """The rank in a variable of the launcher; 0 for a single process."""
    if not external():
        return 0
    text = os.environ.get(torchrun if "TORCHELASTIC_RUN_ID" in os.environ else slurm, "")
    return int(text) if text.isdigit() else 0
