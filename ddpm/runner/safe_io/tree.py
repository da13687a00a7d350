"""Nested dictionaries addressed by dotted keys, as `model.dropout`."""

from collections.abc import Iterator
from typing import Any


def flatten(node: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of everything that is not a non-empty dictionary."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def get_path(node: Any, key: str) -> Any:
    """The value at a dotted key, or None."""
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def locate(node: Any, key: str) -> tuple[dict[str, Any] | None, str]:
    """The dictionary that a dotted key is in, or would be in, and the last part of the key; None:
    there is no such dictionary."""
    *parents, name = key.split(".")
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else None), name


def set_path(node: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key; missing dictionaries on the way are made."""
    *parents, name = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = value


def key_of(override: str) -> str:
    """The dotted key of an override of the command line: `+job.max_steps=5` sets job.max_steps."""
    return override.lstrip("+~").partition("=")[0]
