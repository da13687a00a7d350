"""Runs inside a program that is not ours, such as a notebook: leave its process as it was."""

import contextlib
import logging
import os
import random
import sys
from collections.abc import Iterator

_OF_SEEDING = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # set by Fabric


@contextlib.contextmanager
def guest() -> Iterator[None]:
    """On leaving, restore what a run changes for its whole process: the streams, the states of the
    random number generators on the CPU, and the number of threads."""
    import numpy as np
    import torch

    streams, raises = (sys.stdin, sys.stdout, sys.stderr), logging.raiseExceptions
    environment = {name: os.environ.get(name) for name in _OF_SEEDING}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        logging.raiseExceptions = raises
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_num_threads(threads)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
