"""The version of the code: the commit of the checkout, and whether files differ from it."""

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PARTS = ("ddpm", "conf", "run.py")  # parts that results can depend on
SECONDS = 2.0  # timeout of git, which can be slow on a network disk


@functools.cache
def state() -> dict[str, Any] | None:
    """`{"commit": ..., "dirty": ...}` at the first call of this process; None if unknown, as for an
    installed package, which may lie inside another repository."""
    if not all((ROOT / part).exists() for part in PARTS):
        return None
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(ROOT), "status", "--porcelain=v2"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        output = subprocess.run(
            [*command, "--branch", "--", *PARTS],
            env=plain | {"GIT_OPTIONAL_LOCKS": "0"},  # take no lock in the checkout
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    lines = output.decode(errors="replace").splitlines()
    commit = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", "\n".join(lines), re.MULTILINE)
    if commit is None:  # the repository has no commit
        return None
    return {"commit": commit[1], "dirty": any(not line.startswith("#") for line in lines)}
