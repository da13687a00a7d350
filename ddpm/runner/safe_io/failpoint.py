"""Points at which tests kill the process, to prove that nothing is lost there."""

import os
import signal

_passes: dict[str, int] = {}


def crashpoint(name: str) -> None:
    """Kill this process, as `kill -9` would, if the environment requests it here.

    DDPM_CRASHPOINT="checkpoint.renamed" kills at the first pass of the point with that name,
    "checkpoint.renamed:3" at the third.
    """
    wanted = os.environ.get("DDPM_CRASHPOINT")
    if wanted is None:
        return
    point, _, number = wanted.partition(":")
    if point == name:
        _passes[name] = _passes.get(name, 0) + 1
        if _passes[name] == int(number or 1):
            os.kill(os.getpid(), signal.SIGKILL)
