"""Secrets stay out of files: text that is named like one is refused, and what comes from the
environment is written as the text `${oc.env:NAME}`, to be read from there again.

Which names and values count as secrets: ddpm/runner/safe_io/secret_names.py.
"""

import functools
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from ddpm.errors import InputError
from ddpm.runner.safe_io.secret_names import (
    is_harmless,
    is_password,
    is_secret,
    is_secret_place,
    is_secret_variable,
)

ADVICE = "Set WANDB_API_KEY in the environment, or run `wandb login`."
OPEN = {"DDPM_DATA"}  # where data are: no secret, and needed where the variable is not set
_PLACES = ("data", "data_dir")  # keys of a stored configuration that may read the environment
LEAST = 8  # characters of an environment variable that could not be there by chance
_ENVIRONMENT = "hydra.job.env_set."  # all that stands there becomes text
# A value that is another key's, or a number of the environment.
_REFERENCE = re.compile(r"\$\{[\w.\[\]]+\}|\$\{oc\.decode:\$\{oc\.env:\w+(,[\d.e+-]{0,18})?\}\}")
_NAMES_IN_VALUE = re.compile(r"""[{,]\s*["']?([\w.-]+)["']?\s*:""")
_READS = re.compile(r"oc\.env:\s*[\"']?([\w.-]+)")
_TEXT = re.compile(r"\$\{oc\.env:([A-Za-z_]\w*)(?:,([\w./~+-]*))?\}")
_SIMPLE = re.compile(r"[\w./~+-]*")

Place = tuple[str | int, ...]


class EnvValue(NamedTuple):
    """A value that came from the environment: where it is, and what is written in its place."""

    path: Place
    value: str
    text: str


def check_words(words: Iterable[str]) -> None:
    """Refuse words of the command line that are, name or read a secret.

    Raises:
        InputError: naming the key, never the value.
    """
    for word in words:
        key, equals, value = word.partition("=")
        key = key.lstrip("+~-")
        inner = _NAMES_IN_VALUE.findall(value)
        if is_secret_place(_parts(key)) or any(map(is_secret, inner)):
            # Without a value it may be a flag, and its value the next word.
            for path, leaf in _read_value(value) if equals else [((), key)]:
                _check_value(".".join([key, *map(str, path)]), leaf, typed=True)
        _check_text(key, word)


def _read_value(text: str) -> Iterator[tuple[Place, Any]]:
    """The leaves of a value of the command line as Hydra reads it, all choices of a sweep after
    each other. References to other keys are left out: what they lead to is looked at later."""
    try:
        read = OverridesParser.create().parse_override(f"x={text}").value()
    except HydraException:
        yield from (((), text), *(((name,), text) for name in _NAMES_IN_VALUE.findall(text)))
        return
    if isinstance(read, RangeSweep | IntervalSweep):  # of numbers
        return
    if isinstance(read, Glob):
        read = text
    for choice in read.list if isinstance(read, ChoiceSweep) else [read]:
        for path, leaf in leaves({"": choice}):
            if not _REFERENCE.fullmatch(str(leaf)):
                yield path[1:], leaf


def check_config(node: DictConfig) -> None:
    """Refuse a composed configuration, whose parts may come from files, that holds a secret.

    Raises:
        InputError: naming the key, never the value.
    """
    for path, value in leaves(OmegaConf.to_container(node, resolve=False)):
        key = ".".join(map(str, path))
        if isinstance(value, str):
            _check_text(key, value)
        if is_secret_place(_parts(key)):
            _check_value(key, _resolved(node, path, value))


def _resolved(node: Any, path: Place, value: Any) -> Any:
    """The value at a place, of a reference what it leads to; None where that is not there, which
    is told later."""
    if not isinstance(value, str) or "${" not in value:
        return value
    try:
        for name in path:
            node = node[name]
    except (OmegaConfBaseException, ValueError):
        return None
    return node


def _check_value(key: str, value: Any, *, typed: bool = False) -> None:
    """Refuse a value that could be a secret by the name of its key.

    Args:
        typed: whether it comes from the command line, where digits may be a password.
    """
    parts = _parts(key)
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    name = next((part for part in reversed(parts) if not part.isdecimal()), "")
    digits_count = key.startswith(_ENVIRONMENT) or (typed and is_password(name))
    if is_secret_place(parts) and (not is_harmless(value) or (numeric and digits_count)):
        raise InputError(
            f"{key}: is named like a secret, and such text is for no command line and no file. "
            f"{ADVICE}\nIf it is none, give it another name; numbers, true, false and null are "
            "taken under any."
        )


def _parts(key: str) -> list[str]:
    return re.split(r"[./@:]", key)


def _check_text(key: str, text: str) -> None:
    for name in filter(_is_secret_here, _READS.findall(text)):
        raise InputError(
            f"{key}: reads {name}, which is named like a secret; those are for no file. {ADVICE}"
        )
    for name, value in os.environ.items():
        if len(value) >= LEAST and value in text and is_secret_variable(name, value):
            where = "the command line" if value in key else key
            raise InputError(
                f"{where}: holds the value of the environment variable {name}, which is named "
                f"like a secret; those are for no command line and no file. {ADVICE}"
            )


def _is_secret_here(variable: str) -> bool:
    """Whether a variable that is to be read is named like a secret and holds no mere number."""
    return is_secret_variable(variable, os.environ.get(variable))


def leaves(node: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Paths and values of all that is neither a dict nor a list, and of empty ones."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in pairs:
        if isinstance(value, dict | list) and value:
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def env_values(cfg: DictConfig) -> list[EnvValue]:
    """The texts in `cfg` that the environment has a part in, also by way of other keys.

    The configuration is resolved twice, the second time with marks in place of the variables:
    where the two differ, there was one. Numbers and booleans are no secrets and stay.

    Raises:
        InputError: a list or a group came out of one variable.
    """
    texts: dict[str, str] = {}
    real = dict(leaves(OmegaConf.to_container(cfg, resolve=True)))
    try:
        OmegaConf.register_new_resolver("oc.env", _marker(texts), replace=True)
        marked = dict(leaves(OmegaConf.to_container(cfg, resolve=True)))
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    found = []
    for path, mark in marked.items():
        if not isinstance(mark, str) or not any(name in mark for name in texts):
            continue
        for name, text in texts.items():
            mark = mark.replace(name, text)
        if path not in real:
            key = ".".join(map(str, path))
            raise InputError(f"{key}={mark}: write one variable for each of its values.")
        if isinstance(real[path], str):
            found.append(EnvValue(path, real[path], mark))
    return found


def _marker(texts: dict[str, str]) -> Any:
    """A resolver like `oc.env` that gives marks; `texts` learns what they stand for."""
    missing = object()

    def resolve(key: str, default: Any = missing) -> str | None:
        if _is_secret_here(key):  # however it was written
            raise InputError(f"${{oc.env:{key}}}: is named like a secret, and not read. {ADVICE}")
        if key in OPEN or key not in os.environ:
            return oc.env(key) if default is missing else oc.env(key, default)
        mark = f"env{secrets.token_hex(8)}"  # a word that other resolvers can read, too
        plain = default is not missing and _SIMPLE.fullmatch(str(default))
        texts[mark] = f"${{oc.env:{key},{default}}}" if plain else f"${{oc.env:{key}}}"
        return mark

    return resolve


def mask_env(node: dict[str, Any], found: Iterable[EnvValue]) -> dict[str, Any]:
    """A copy of plain data with the texts where their values still are, made absolute or not."""
    copy = _copy(node)
    for path, value, text in found:
        *parents, name = path
        holder: Any = copy
        try:
            for parent in parents:
                holder = holder[parent]
            now = holder[name]
        except (KeyError, IndexError, TypeError):
            continue
        if now == value or now == str(Path(os.path.expanduser(value)).absolute()):
            holder[name] = text
    return copy


def unmask_env(
    stored: dict[str, Any], own: Iterable[EnvValue] = (), given: Iterable[str] = ()
) -> tuple[dict[str, Any], list[EnvValue]]:
    """A stored configuration with the environment's values, and where they are.

    Only `${oc.env:NAME}` and `${oc.env:NAME,default}` are read, and only where they say where data
    are, or where the configuration of this start says the same: a stranger's must not hand
    somebody's environment to a tracker.

    Args:
        own: what this start reads of the environment.
        given: keys of its command line.

    Raises:
        InputError: a variable is not set, is named like a secret, or is not to be read.
    """
    said = {place: text for place, _, text in own}
    copy, found = _copy(stored), []
    for path, text in leaves(stored):
        if isinstance(text, str) and _TEXT.search(text) and path[0] != "overrides":
            key = ".".join(map(str, path))
            for match in _TEXT.finditer(text):
                _check_variable(key, match)
            if path[0] not in _PLACES and said.get(path) != text and key not in given:
                raise InputError(
                    f"{key}={text}: a stored configuration reads no environment here. If you mean "
                    f"it, say it again: '{key}={text}'."
                )
            value = _TEXT.sub(functools.partial(_read, key), text)
            found.append(EnvValue(path, value, text))
            holder: Any = copy
            for parent in path[:-1]:
                holder = holder[parent]
            holder[path[-1]] = value
    return copy, found


def _check_variable(key: str, match: re.Match[str]) -> None:
    if _is_secret_here(match[1]):
        raise InputError(f"{key}={match[0]}: {match[1]} is named like a secret, and is not read.")


def _read(key: str, match: re.Match[str]) -> str:
    name, default = match.groups()
    value = os.environ.get(name, default)
    if value is None:
        raise InputError(f"{key}={match[0]}: the environment variable {name} is not set.")
    return value


def redact(message: str, found: Iterable[EnvValue]) -> str:
    """A message with the texts in place of values long enough to be told from other words."""
    for _, value, text in found:
        message = message.replace(value, text) if len(value) >= LEAST else message
    return message


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _copy(value) for name, value in node.items()}
    return [_copy(value) for value in node] if isinstance(node, list) else node
