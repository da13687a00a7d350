"""Keys that hold a path or a name: texts, whatever YAML or Hydra's parser takes them for.

A folder may be called `123`, `true` or `7.5`; `~` means the home folder wherever a path is given.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from typing import Any

from ddpm.errors import InputError, shown
from ddpm.runner.terminal import shell

# Keys with one path each; with a list of them, or one alone; with a name.
PATHS = (
    *("output_dir", "data_dir", "resume", "checkpoint"),
    *("data.root", "guidance.classifier", "job.image", "job.mask"),
)
LISTS = ("runs", "job.images")
NAMES = ("sweep",)  # or a path, which has a "/" in it
KEYS = (*PATHS, *LISTS, *NAMES)

LONGEST_NAME = 255  # bytes of a file's name, on nearly every file system
LONGEST_MADE = LONGEST_NAME - 60  # with room for what is added: "-2", ".tmp", a process's number
_NAME = re.compile(r"[\w.+-]+")


def normalise(config: dict[str, Any], words: Iterable[str] = ()) -> None:
    """Make every path and name in a resolved configuration a text, with `~` replaced. null stays.

    Args:
        words: overrides of the command line, to show how one of them is written as a text.

    Raises:
        InputError: names every value that cannot be one, and what is allowed.
    """
    wrong = []
    for key in KEYS:
        *parents, name = key.split(".")
        node: Any = config
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or node.get(name) is None:
            continue
        value = node[name]
        many = key in LISTS and isinstance(value, list)
        node[name] = [as_text(item) for item in value] if many else as_text(value)
        if not all(map(_is_path, node[name] if many else [node[name]])):
            allowed = "a list of paths" if key in LISTS else "a path"
            allowed = "a name or a path" if key in NAMES else allowed
            wrong.append(f"{key}={shown(value)}: must be {allowed}, or null.{_spelled(key, words)}")
    if wrong:
        raise InputError("\n".join(wrong))
    if "sweep" in config:
        check_sweep_name(config["sweep"])


def _spelled(key: str, words: Iterable[str]) -> str:
    """How to write what was typed for a key, where that is one text, as `[a]` or `{b}`."""
    typed = [word.partition("=")[2] for word in words if word.partition("=")[0] == key]
    if key in NAMES or not typed or typed[-1][:1] not in ("[", "{"):
        return ""
    return f" If it is called so: {shell.word(key, typed[-1])}"


def as_text(value: Any) -> Any:
    """A number or a boolean as it is written, `~/x` as a folder in the home folder; else as is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    return os.path.expanduser(value) if isinstance(value, str) else value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def sweep_dir(name: Any, now: str) -> str:
    """The folder of the sweep `name`: a path with a `/` is taken as it is, other names are folders
    in outputs/sweep, and a sweep without a name is called after the time `now`."""
    if name is None:
        return f"outputs/sweep/{now}"
    text = str(as_text(name))
    return text if "/" in text else f"outputs/sweep/{text}"


def check_sweep_name(name: Any) -> None:
    """See that a sweep can be called so.

    Raises:
        InputError: says how it can.
    """
    name = as_text(name)
    if name is None or (_is_path(name) and "/" in name):
        return
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith("."):
        raise InputError(
            f"sweep={shown(name)}: must be a name of letters, digits, '-', '_', '.', '+', or a "
            "path with a '/'."
        )


def file_name(text: str) -> str:
    """A text as the name of one file or folder: other characters than letters, digits and `_.+=-`
    become `_`. Of what is longer than a file system takes the middle is left out, and a digest
    keeps apart what differs there."""
    name = re.sub(r"[^\w.+=-]", "_", text).lstrip(".") or "_"
    data = name.encode(errors="replace")
    if len(data) <= LONGEST_MADE:
        return data.decode()
    digest = hashlib.sha256(data).hexdigest()[:12]
    half = (LONGEST_MADE - len(digest) - 4) // 2
    head, tail = data[:half].decode(errors="ignore"), data[-half:].decode(errors="ignore")
    return f"{head}..{digest}..{tail}"
