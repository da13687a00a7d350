"""Schema of stored configurations, in run folders and checkpoints, which are untrusted data.

A configuration is checked by the reader's rules before it is written, so that every run that starts
can be resumed.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from ddpm.errors import InputError, shown
from ddpm.runner import roles
from ddpm.runner.runs import old_names
from ddpm.runner.safe_io.plain import MAX_NODES, MAX_TEXT, Refused, check_plain
from ddpm.runner.safe_io.yaml_json import parse_yaml

# Ids of runs become parts of paths and of artifact names.
_WORD = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_UNWRITABLE = re.compile("[\ud800-\udfff]")  # surrogates: Python's form of bytes that are not UTF-8
MOST_VALUES = MAX_NODES // 2  # in a list; the rest is for the other contents of a checkpoint
VERSION = 1  # raise it when an older program would misread a configuration


def read(config: Any) -> dict[str, Any]:
    """A stored configuration with today's names, after checking its shape.

    Args:
        config: content of a run folder or checkpoint; it is not changed.

    Raises:
        Refused: it is not a configuration of this program; gives the reason in one line.
    """
    check_shape(config)
    return old_names.renamed(config)


def check_shape(config: Any) -> None:
    """Check the types of a stored configuration.

    Raises:
        Refused: one is wrong; gives the reason in one line.
    """
    check_plain(config)
    if not isinstance(config, dict) or not isinstance(config.get("choices"), dict):
        raise Refused("it holds no configuration of this program")
    for group, choice in config["choices"].items():
        options = choice if isinstance(choice, list) else [choice]
        if not all(x is None or isinstance(x, str) for x in options):
            raise Refused(f"choices.{shown(group)} is {shown(choice)}, which names no option")
    for part in roles.PARTS:
        if not isinstance(config.get(part, {}), dict):
            raise Refused(f"its {part} is {shown(config[part])}")
    if missing := [part for part in ("model", "data") if part not in config]:
        raise Refused(f"it lacks {missing[0]}")
    if not is_word(config.get("run_id", "x")):
        raise Refused(f"run_id is {shown(config['run_id'])}")


def to_yaml(config: dict[str, Any]) -> str:
    """The text of a run's config.yaml, verified by reading it back.

    Raises:
        InputError: it could not be read back; names the key and the problem of its value.
    """
    check_values(config)
    text = yaml.dump(config, Dumper=_Plain, sort_keys=False)
    try:
        check_shape(parse_yaml(text.encode()))
    except Refused as error:
        raise InputError(f"This run's configuration could not be read back: {error}.") from None
    return text


def check_values(config: dict[str, Any]) -> None:
    """Check that a reader would accept each value of a configuration.

    Raises:
        InputError: names the keys and the problems of their values.
    """
    if problems := list(_unreadable("", config))[:5]:
        raise InputError("\n".join(problems))


class _Plain(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes repeated values in full instead of YAML aliases (`&id001`)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _unreadable(key: str, value: Any) -> Iterator[str]:
    """A message for each value that a reader would refuse."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _unreadable(f"{key}.{name}" if key else str(name), inner)
    elif isinstance(value, list):
        if len(value) > MOST_VALUES:
            yield f"{key}: a list of {len(value):,} values, more than the {MOST_VALUES:,} allowed."
        else:
            for inner in value:
                yield from _unreadable(key, inner)
    elif isinstance(value, int) and value.bit_length() > 64:
        yield f"{key}: an integer of {value.bit_length()} bits, more than 64."
    elif isinstance(value, str) and len(value) > MAX_TEXT:
        yield f"{key}: a string of {len(value):,} characters, more than the {MAX_TEXT:,} allowed."
    elif isinstance(value, str) and (bad := _UNWRITABLE.search(value)):
        written = shown(value, 200) if key == "overrides" else f"{key}={shown(value, 200)}"
        yield (
            f"{written}: holds the byte 0x{ord(bad[0]) - 0xDC00:02x}, which is not UTF-8. Rename "
            "the file or folder, or use a link to it."
        )


def is_word(value: Any) -> bool:
    """Whether a value is safe as a part of paths and names."""
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def check_version(config: dict[str, Any], source: str) -> None:
    """Check the version of a stored configuration; without one it is 1.

    Args:
        source: start of the message, as `resume=<folder>`.

    Raises:
        InputError: it was written by a newer program, or its version is invalid.
    """
    version = config.get("version", 1)
    if type(version) is not int or version < 1:
        raise InputError(f"{source}: its version is {shown(version)}, not a whole number from 1.")
    if version > VERSION:
        raise InputError(
            f"{source}: written by a newer version of this program ({version}, here {VERSION}): "
            "update it."
        )
