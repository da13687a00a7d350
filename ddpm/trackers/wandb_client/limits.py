"""W&B's limits of projects, tags and names, and functions that make texts fit.

Its client refuses tags that are empty or longer than 64 characters and projects with special
characters of URLs (wandb/sdk/wandb_settings.py); its server refuses names and groups of more than
128 characters. This module does not import wandb.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ddpm.errors import InputError, nearest, shown

TAG = 64  # characters
NAME = 128  # characters of the names of runs, groups, job types, projects, users and teams

PROJECT = f"1 to {NAME} characters, none of them / \\ # ? % :"  # also of users and teams
TAGS = f"a list of tags, texts of 1 to {TAG} characters, like [baseline, '2026'], in quotes where "
TAGS += "YAML would not read a string"
MODES = ("online", "offline", "disabled")
_OLD_MODES = {"dryrun": "offline", "run": "online"}  # W&B's former names


def is_project(text: str) -> bool:
    """Whether a text can be the name of a project, a user or a team."""
    printable = text.isprintable() and text == text.strip()
    return printable and 1 <= len(text) <= NAME and not set(text) & set("/\\#?%:")


def are_tags(values: list[Any]) -> bool:
    """Whether each of some values can be a tag."""
    return all(isinstance(tag, str) and tag.strip() and len(tag) <= TAG for tag in values)


def in_sweep() -> bool:
    """Whether W&B's agent has started this process for a run of its sweep."""
    sweep = os.environ.get("WANDB_SWEEP_ID", "")
    return sweep != "" and sweep == sweep.strip()


def wanted_mode(mode: str | None) -> str | None:
    """The mode of the configuration, or else of the environment; None if neither sets it.

    Raises:
        InputError: it is not a mode.
    """
    key = "tracker.wandb.mode"
    if mode is None:
        key, mode = "WANDB_MODE", os.environ.get("WANDB_MODE") or None
        mode = _OLD_MODES.get(mode or "", mode)
    if mode not in (None, *MODES):
        allowed = ", ".join(MODES)
        raise InputError(
            f"{key}={shown(mode)}: must be one of {allowed}.{nearest(str(mode), MODES)}"
        )
    return mode


def tags(values: Iterable[Any]) -> list[str]:
    """Tags that W&B accepts: unique, cut to the limit, not empty."""
    found = (cleaned(str(value)).strip()[:TAG] for value in values if value is not None)
    return list(dict.fromkeys(tag for tag in found if tag))


def cleaned(text: str) -> str:
    """A text on one line that can be sent; bytes that are not UTF-8 become `\\xff`."""
    line = "".join(" " if ord(c) < 32 or ord(c) == 127 else c for c in text)
    return line.encode("utf-8", "backslashreplace").decode()


def cleaned_notes(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(map(cleaned, text.splitlines()))


def shortened(text: str, limit: int = NAME) -> str:
    """A text of at most `limit` characters. The middle of a longer one is replaced by a digest, so
    that different texts stay different."""
    text = cleaned(text)
    if len(text) <= limit:
        return text
    tail = (limit - 11) // 2
    return f"{text[: limit - 11 - tail]}..{_digest(text)}..{text[-tail:]}"


def labelled(name: str, label: str) -> str:
    """A name followed by a label that distinguishes the run; if both are too long, the name is
    shortened first."""
    name, label = cleaned(name), cleaned(label)
    whole = f"{name} {label}".strip()
    if len(whole) <= NAME or len(label) > NAME // 2:
        return shortened(whole)
    return f"{shortened(name, NAME - len(label) - 1)} {label}"


def title_of(words: Sequence[str]) -> str:
    """The overrides without those for trackers; without the groups of their keys if that is too
    long."""
    kept = [word for word in words if not word.lstrip("+").startswith("tracker")]
    title = " ".join(kept)
    if len(title) <= NAME:
        return title
    short = [re.sub(r"^[^=]*\.(?=[^=.]*=)", "", word) for word in kept]
    keys = {word.partition("=")[0] for word in short}
    return shortened(" ".join(short if len(keys) == len(kept) else kept))


def plain(text: str) -> str:
    """A text that every server accepts: 64 characters of ASCII."""
    return shortened(re.sub(r"[^A-Za-z0-9 =_.,-]", "_", text), 64)


def artifact_name(text: str) -> str:
    """The name of an artifact: letters, digits, `-`, `_` and `.`."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", text)
    return shortened(name if name == text else f"{name}-{_digest(text)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:7]
