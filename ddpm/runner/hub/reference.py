"""Resolve what names a checkpoint to a file or folder here: a path, `wandb:...` or `hf:...`."""

import functools
import re

from ddpm.errors import InputError
from ddpm.trackers.wandb_client import reference as wandb_reference
from ddpm.trackers.wandb_client.reference import Source

PREFIX = "hf:"
FORM = "hf:<owner>/<name>, or hf:<owner>/<name>@<branch, tag or commit>"
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][\w./-]{{0,99}}))?", re.ASCII)


def is_remote(source: str) -> bool:
    """Whether a source is on a server, and not a path."""
    return source.startswith((PREFIX, wandb_reference.PREFIX))


def find(source: str) -> Source:
    """The path of the checkpoint that `source` names, downloaded if it is on a server.

    Raises:
        InputError: it cannot be downloaded.
    """
    if not source.startswith(PREFIX):
        return wandb_reference.find(source)
    return _fetched(source)


def repository(name: str, key: str) -> tuple[str, str | None]:
    """Repository and revision in a `hf:` name.

    Args:
        key: of the configuration, for the message.

    Raises:
        InputError: it is none.
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    if match is None or ".." in name:
        raise InputError(f"{key}={name}: a repository is named {FORM}.")
    return match[1], match[2]


@functools.cache
def _fetched(source: str) -> Source:
    """The downloaded repository; cached, since planning needs it several times."""
    from ddpm.runner.hub.download import fetch

    name, revision = repository(source, "checkpoint")
    try:
        folder, commit = fetch(name, revision, wandb_reference.cache() / "hf")
    except InputError as error:
        raise InputError(f"checkpoint={source}: {error}") from None
    except OSError as error:
        raise InputError(f"checkpoint={source}: {error.filename}: {error.strerror}.") from None
    return Source(folder, {"repository": name, "revision": commit})
