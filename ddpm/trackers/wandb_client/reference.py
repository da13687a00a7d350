"""`wandb:<entity>/<project>/<artifact>:<alias>`, wherever a checkpoint is named: a file here."""

import functools
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.errors import InputError

PREFIX = "wandb:"
FORM = "wandb:<entity>/<project>/<artifact>:<alias or version>"
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w. -]*/[\w-][\w.-]*:[\w-][\w. -]*")


class Source(NamedTuple):
    """A file or folder, and what is known of the artifact it came from."""

    path: Path
    about: dict[str, Any]


def find(source: str) -> Source:
    """Where the checkpoint that `source` names is; an artifact is downloaded, once.

    Raises:
        InputError: it names an artifact that cannot be had.
    """
    if not source.startswith(PREFIX):
        return Source(Path(os.path.expanduser(source)), {})
    found = _fetched(source)
    return Source(found.file, {"artifact": found.name, "digest": found.digest})


@functools.cache
def _fetched(source: str) -> Any:
    """Asked once by a process: the options of a run are wanted before the run is planned."""
    name = source.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise InputError(f"checkpoint={source}: an artifact is named {FORM}.")
    from ddpm.trackers.wandb_client.download import fetch

    try:
        return fetch(name, cache())
    except InputError as error:
        raise InputError(f"checkpoint={source}: {error}") from None
    except OSError as error:
        raise InputError(f"checkpoint={source}: {cache()}: {error.strerror}.") from None


def cache() -> Path:
    """Where downloads stay, by digest: `DDPM_CACHE`, or a folder in the user's cache.

    Raises:
        InputError: neither is set, and the user has no home.
    """
    if own := os.environ.get("DDPM_CACHE"):
        return Path(os.path.expanduser(own), "artifacts")
    if user := os.environ.get("XDG_CACHE_HOME"):
        return Path(user, "hydra-ddpm", "artifacts")
    try:
        return Path.home() / ".cache" / "hydra-ddpm" / "artifacts"
    except RuntimeError:  # as in a container that runs under a number without a name
        raise InputError(
            "this user has no home folder for downloads: set the environment variable DDPM_CACHE "
            "to a folder."
        ) from None
