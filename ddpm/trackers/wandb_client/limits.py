"""What W&B takes as projects, tags, names and the like, and how texts are made to fit.

Its client refuses tags that are empty or longer than 64 characters and projects with characters
that have a meaning in addresses (wandb/sdk/wandb_settings.py); its server refuses names and groups
of more than 128 characters. Nothing here imports wandb.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ddpm.errors import InputError, nearest, shown

TAG = 64  # characters
NAME = 128  # of a run's name, group and job type, of projects, users and teams

PROJECT = f"1 to {NAME} characters, none of them / \\ # ? % :"  # also of users and teams
TAGS = f"a list of tags, texts of 1 to {TAG} characters, like [baseline, '2026'], in quotes where "
TAGS += "YAML reads something else"
MODES = ("online", "offline", "disabled")
_OLD_MODES = {"dryrun": "offline", "run": "online"}  # W&B's own names of former times


def is_project(text: str) -> bool:
    """Whether a text can be the name of a project, a user or a team."""
    printable = text.isprintable() and text == text.strip()
    return printable and 1 <= len(text) <= NAME and not set(text) & set("/\\#?%:")


def are_tags(values: list[Any]) -> bool:
    """Whether each of some values can be a tag."""
    return all(isinstance(tag, str) and tag.strip() and len(tag) <= TAG for tag in values)


def in_sweep() -> bool:
    """Whether W&B's agent has started this process, for a run of its sweep."""
    sweep = os.environ.get("WANDB_SWEEP_ID", "")
    return sweep != "" and sweep == sweep.strip()


def wanted_mode(mode: str | None) -> str | None:
    """What the configuration or else the environment asks for; None if neither does.

    Raises:
        InputError: that is no mode.
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
    """Tags as W&B takes them: each once, cut where they are too long, none of them empty."""
    found = (cleaned(str(value)).strip()[:TAG] for value in values if value is not None)
    return list(dict.fromkeys(tag for tag in found if tag))


def cleaned(text: str) -> str:
    """A text on one line that can be sent: what is no UTF-8 is written as `\\xff`."""
    line = "".join(" " if ord(c) < 32 or ord(c) == 127 else c for c in text)
    return line.encode("utf-8", "backslashreplace").decode()


def cleaned_notes(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(map(cleaned, text.splitlines()))


def shortened(text: str, limit: int = NAME) -> str:
    """A text of at most `limit` characters. Its middle is left out where it is longer, and a digest
    keeps apart what differs there."""
    text = cleaned(text)
    if len(text) <= limit:
        return text
    tail = (limit - 11) // 2
    return f"{text[: limit - 11 - tail]}..{_digest(text)}..{text[-tail:]}"


def labelled(name: str, label: str, limit: int = NAME) -> str:
    """A name with what tells a run from others behind it; where that is too long, the name is cut
    first."""
    name, label = cleaned(name), cleaned(label)
    whole = f"{name} {label}".strip()
    if len(whole) <= limit or len(label) > limit // 2:
        return shortened(whole, limit)
    return f"{shortened(name, limit - len(label) - 1)} {label}"


def title_of(words: Sequence[str]) -> str:
    """Words of the command line without those for trackers; keys without their groups where all is
    too long otherwise."""
    kept = [word for word in words if not word.lstrip("+").startswith("tracker")]
    title = " ".join(kept)
    if len(title) <= NAME:
        return title
    short = [re.sub(r"^[^=]*\.(?=[^=.]*=)", "", word) for word in kept]
    keys = {word.partition("=")[0] for word in short}
    return shortened(" ".join(short if len(keys) == len(kept) else kept))


def plain(text: str) -> str:
    """A text that no server has reason to refuse: 64 characters of ASCII."""
    return shortened(re.sub(r"[^A-Za-z0-9 =_.,-]", "_", text), 64)


def artifact_name(text: str) -> str:
    """The name of an artifact: letters, digits, `-`, `_` and `.`."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", text)
    return shortened(name if name == text else f"{name}-{_digest(text)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:7]
