"""Runs inside a program that is not ours, such as a notebook: leave its process as it was."""

import contextlib
import logging
import random
import sys
from collections.abc import Iterator

from ddpm.runner.distributed import environment

_OF_SEEDING = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # set by Fabric


@contextlib.contextmanager
def guest() -> Iterator[None]:
    """On leaving, restore what a run changes for its whole process: the streams, the states of the
    random number generators on the CPU, and the number of threads."""
    import numpy as np
    import torch

    streams, raises = (sys.stdin, sys.stdout, sys.stderr), logging.raiseExceptions
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads = torch.get_num_threads()
    try:
        with environment.restored(_OF_SEEDING):
            yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        logging.raiseExceptions = raises
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_num_threads(threads)
