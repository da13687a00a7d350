"""Keys that hold a path or a name. They are texts, even if YAML or Hydra parse another type.

A folder may be called `123`, `true` or `7.5`; `~` is the home folder in all paths.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from typing import Any

from ddpm.errors import InputError, shown
from ddpm.runner.safe_io.tree import locate
from ddpm.runner.terminal import shell

# Keys with one path; with one path or a list of paths; with a name.
PATHS = (
    *("output_dir", "data_dir", "resume", "checkpoint", "init_from", "samples"),
    *("data.root", "guidance.classifier", "guidance.weak", "job.image", "job.mask"),
)
LISTS = ("runs", "scores", "job.images")
NAMES = ("sweep",)  # or a path, which has a "/" in it
KEYS = (*PATHS, *LISTS, *NAMES)

LONGEST_NAME = 255  # bytes of a file name, on nearly every file system
LONGEST_MADE = LONGEST_NAME - 60  # leaves room for suffixes: "-2", ".tmp", a process id
_NAME = re.compile(r"[\w.+-]+")


def normalise(config: dict[str, Any], words: Iterable[str] = ()) -> None:
    """Convert every path and name of a resolved configuration to a text and expand `~`. null stays.

    Args:
        words: overrides of the command line, to show how to quote one of them.

    Raises:
        InputError: names every value that is neither a path nor a name, and what is allowed.
    """
    errors = []
    for key in KEYS:
        node, name = locate(config, key)
        if node is None or node.get(name) is None:
            continue
        value = node[name]
        many = key in LISTS and isinstance(value, list)
        node[name] = [as_text(item) for item in value] if many else as_text(value)
        if not all(map(_is_path, node[name] if many else [node[name]])):
            allowed = "a list of paths" if key in LISTS else "a path"
            allowed = "a name or a path" if key in NAMES else allowed
            hint = _spelled(key, words)
            errors.append(f"{key}={shown(value)}: must be {allowed}, or null.{hint}")
    if errors:
        raise InputError("\n".join(errors))
    if "sweep" in config:
        check_sweep_name(config["sweep"])


def _spelled(key: str, words: Iterable[str]) -> str:
    """A hint how to quote the typed value of a key, if it looks like a list `[a]` or dict `{b}`."""
    typed = [word.partition("=")[2] for word in words if word.partition("=")[0] == key]
    if key in NAMES or not typed or typed[-1][:1] not in ("[", "{"):
        return ""
    return f" If that is its name: {shell.word(key, typed[-1])}"


def as_text(value: Any) -> Any:
    """Write a number or a boolean as text and expand `~`; leave other values unchanged."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    return os.path.expanduser(value) if isinstance(value, str) else value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def sweep_dir(name: Any, now: str) -> str:
    """The folder of the sweep `name`: a path with a `/` is used unchanged, other names are folders
    in outputs/sweep, and the default name is the time `now`."""
    if name is None:
        return f"outputs/sweep/{now}"
    text = str(as_text(name))
    return text if "/" in text else f"outputs/sweep/{text}"


def check_sweep_name(name: Any) -> None:
    """Check the name of a sweep.

    Raises:
        InputError: it is not allowed; says which names are.
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
    """Turn a text into a file name: characters other than letters, digits and `_.+=-` become `_`.
    If it is too long for a file system, a digest of the whole replaces the middle."""
    name = re.sub(r"[^\w.+=-]", "_", text).lstrip(".") or "_"
    data = name.encode(errors="replace")
    if len(data) <= LONGEST_MADE:
        return data.decode()
    digest = hashlib.sha256(data).hexdigest()[:12]
    half = (LONGEST_MADE - len(digest) - 4) // 2
    head, tail = data[:half].decode(errors="ignore"), data[-half:].decode(errors="ignore")
    return f"{head}..{digest}..{tail}"
