"""Resolve `wandb:<entity>/<project>/<artifact>:<alias>`, as given for a checkpoint, to a file."""

import functools
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.errors import InputError
from ddpm.runner.checkpoints import summary

PREFIX = "wandb:"
FORM = "wandb:<entity>/<project>/<artifact>:<alias or version>"
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w. -]*/[\w-][\w.-]*:[\w-][\w. -]*")


class Source(NamedTuple):
    """A file or folder, and the artifact that it comes from."""

    path: Path
    about: dict[str, Any]


def find(source: str) -> Source:
    """The path of the checkpoint that `source` names; an artifact is downloaded once.

    Raises:
        InputError: the artifact cannot be downloaded.
    """
    if not source.startswith(PREFIX):
        return Source(summary.named(source), {})
    fetched = _fetched(source)
    return Source(fetched.file, {"artifact": fetched.name, "digest": fetched.digest})


@functools.cache
def _fetched(source: str) -> Any:
    """The downloaded artifact; cached, since planning needs it several times."""
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
    """The folder of downloads: `DDPM_CACHE`, or a folder in the user's cache.

    Raises:
        InputError: neither is set, and the user has no home folder.
    """
    if own := os.environ.get("DDPM_CACHE"):
        return Path(os.path.expanduser(own), "artifacts")
    if user := os.environ.get("XDG_CACHE_HOME"):
        return Path(user, "hydra-ddpm", "artifacts")
    try:
        return Path.home() / ".cache" / "hydra-ddpm" / "artifacts"
    except RuntimeError:  # as for a user id without a name in a container
        raise InputError(
            "this user has no home folder for downloads: set the environment variable DDPM_CACHE "
            "to a folder."
        ) from None
