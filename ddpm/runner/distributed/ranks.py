"""Which of several processes this one is, where torchrun or Slurm started them: asked of the
environment, so that it is known before torch is there."""

import contextlib
import logging
import os
from collections.abc import Iterator

from ddpm.errors import InputError, ToldElsewhere


def external() -> bool:
    """Whether the processes of this run are started by somebody else."""
    return "TORCHELASTIC_RUN_ID" in os.environ or by_srun()


def by_srun() -> bool:
    """Whether Slurm's `srun` has started several processes. The number of a job's tasks would not
    tell: it is known to its script, too, and to a shell in an allocation, which run once."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    return tasks.isdigit() and int(tasks) > 1


def leads() -> bool:
    """Whether this process is the first of all: the one that tells people how things stand."""
    return _number("RANK", "SLURM_PROCID") == 0


def leads_machine() -> bool:
    """Whether it is the first on its machine: while the processes do not know each other, that one
    tells of mistakes, for they may be of its machine."""
    return _number("LOCAL_RANK", "SLURM_LOCALID") == 0


@contextlib.contextmanager
def one_tells() -> Iterator[None]:
    """What is wrong or doubtful in here is so for all processes of this machine: the first tells.

    Raises:
        ToldElsewhere: in the others.
    """
    if leads_machine():
        yield
        return
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    except InputError as error:
        raise ToldElsewhere(str(error)) from error
    finally:
        logging.root.setLevel(level)


def _number(torchrun: str, slurm: str) -> int:
    """A place among the processes; 0 where this one is alone."""
    if not external():
        return 0
    found = os.environ.get(torchrun if "TORCHELASTIC_RUN_ID" in os.environ else slurm, "")
    return int(found) if found.isdigit() else 0
