"""Places where a test lets the process die, to prove that nothing is lost there."""

import os
import signal

_passed: dict[str, int] = {}


def crashpoint(name: str) -> None:
    """Kill this process, as `kill -9` would, if the environment asks for it; else do nothing.

    DDPM_CRASHPOINT="checkpoint.renamed" asks for it at the first passing of that name,
    "checkpoint.renamed:3" at the third.
    """
    wanted = os.environ.get("DDPM_CRASHPOINT")
    if wanted is None:
        return
    place, _, number = wanted.partition(":")
    if place == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] == int(number or 1):
            os.kill(os.getpid(), signal.SIGKILL)
