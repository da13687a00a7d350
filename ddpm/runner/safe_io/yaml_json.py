"""Readers of untrusted YAML and JSON with bounded size, depth and aliases."""

import json
from pathlib import Path
from typing import Any

import yaml

from ddpm.errors import shown
from ddpm.runner.safe_io.plain import (
    MAX_DEPTH,
    MAX_NODES,
    MAX_TEXT,
    Refused,
    check_plain,
    regular_size,
)

MAX_YAML = 1024 * 1024  # bytes


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader; duplicate keys are errors, as in Hydra."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if key.value in keys if isinstance(key, yaml.ScalarNode) else True:
                problem = f"the key {shown(repr(key.value))} twice"
                if not isinstance(key, yaml.ScalarNode):
                    problem = "a key that is not a string"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The plain data of a YAML file of at most MAX_YAML bytes.

    Raises:
        OSError: the file does not exist or cannot be read.
        Refused: it is not YAML, not plain data, or exceeds a limit.
    """
    return parse_yaml(_read_small(path, MAX_YAML))


def _read_small(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, at most one more than `limit`.

    Raises:
        OSError: the file does not exist or cannot be read.
        Refused: it is larger.
    """
    if regular_size(path) > limit:
        raise Refused(f"larger than {limit // 1024} KiB")
    with open(path, "rb") as file:
        return file.read(limit + 1)  # it may have grown since


def parse_yaml(data: bytes) -> Any:
    """The plain data of the bytes of a YAML file.

    Raises:
        Refused: as `read_yaml` does.
    """
    if len(data) > MAX_YAML:
        raise Refused(f"larger than {MAX_YAML // 1024} KiB")
    try:
        text = data.decode("utf-8-sig")
        _vet_yaml(text)
        content = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise Refused(f"line {line}, column {column}: not UTF-8") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise Refused(f"line {line}, column {column}: {shown(error.reason)}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise Refused(f"{where}{shown(error.problem or error.context, 200)}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(shown(error, 200)) from None  # an invalid date or number
    check_plain(content)
    return content


def _vet_yaml(text: str) -> None:
    """Check depth, aliases, merges and tags on the event stream, before objects are constructed."""
    open_nodes: list[list[Any]] = []  # [anchor, number of nodes before it]
    sizes: dict[str, int] = {}  # nodes below each anchor
    seen = 0
    for event in yaml.parse(text, Loader=_Loader):
        mark = event.start_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: "
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            anchor, seen_before = open_nodes.pop()
            sizes[anchor] = seen - seen_before
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        seen += 1
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise Refused(f"{where}*{shown(event.anchor)} contains itself")
            seen += sizes.get(event.anchor, 0)
        elif event.tag not in (None, "!"):  # "!" alone marks a string
            raise Refused(f"{where}the tag {shown(event.tag)} is not allowed")
        elif isinstance(event, yaml.ScalarEvent):
            if event.value == "<<" and event.implicit[0]:
                raise Refused(f"{where}<< is not allowed")
            if len(event.value) > MAX_TEXT:
                raise Refused(f"{where}a string of {len(event.value):,} characters")
            sizes[event.anchor] = 1
        else:
            open_nodes.append([event.anchor, seen - 1])
        if len(open_nodes) > MAX_DEPTH:
            raise Refused(f"{where}nested deeper than {MAX_DEPTH}")
        if seen > MAX_NODES:
            raise Refused(f"{where}more than {MAX_NODES:,} values")


def read_json_file(path: Path, limit: int) -> Any:
    """The plain data of a JSON file of at most `limit` bytes.

    Raises:
        OSError: the file does not exist or cannot be read.
        Refused: as `read_json` does.
    """
    return read_json(_read_small(path, limit), limit)


def read_json(text: bytes | str, limit: int, *, max_text: int = MAX_TEXT) -> Any:
    """The plain data of a JSON document.

    Args:
        limit: maximal length of the document, in bytes or characters.
        max_text: maximal length of a string in it.

    Raises:
        Refused: it is longer, not JSON, has duplicate keys, or is not plain data.
    """
    if len(text) > limit:
        raise Refused(f"{len(text):,} bytes of JSON, more than {limit:,}")
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        content = json.loads(decoded, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise Refused(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise Refused(f"nested deeper than {MAX_DEPTH}") from None
    except UnicodeDecodeError:
        raise Refused("not UTF-8") from None
    except ValueError as error:
        raise error if isinstance(error, Refused) else Refused(shown(error, 200)) from None
    check_plain(content, max_text=max_text)
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise Refused(f"the key {shown(repr(key))} twice")
        unique[key] = value
    return unique
