"""Which code a run was made by: the commit of the checkout, and whether it was changed since."""

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PARTS = ("ddpm", "conf", "run.py")  # what a result can depend on
SECONDS = 2.0  # that git may take; on a slow network disk there is no answer, rather than a wait


@functools.cache
def state() -> dict[str, Any] | None:
    """`{"commit": ..., "dirty": ...}` as it was when this process began; None where none is known.

    An installed package, which may lie inside of another repository, has none.
    """
    if not all((ROOT / part).exists() for part in PARTS):
        return None
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(ROOT), "status", "--porcelain=v2"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        told = subprocess.run(
            [*command, "--branch", "--", *PARTS],
            env=plain | {"GIT_OPTIONAL_LOCKS": "0"},  # others may be at work in the checkout
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    lines = told.decode(errors="replace").splitlines()
    commit = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", "\n".join(lines), re.MULTILINE)
    if commit is None:  # of a repository without a commit
        return None
    return {"commit": commit[1], "dirty": any(not line.startswith("#") for line in lines)}
