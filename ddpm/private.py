"""Secrets stay out of files: what is named like one is refused, and what comes from the environment
is written as the text `${oc.env:NAME}`, to be read from there again.
"""

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from ddpm.errors import InputError

ADVICE = "Set WANDB_API_KEY in the environment, or run `wandb login`."
OPEN = {"DDPM_DATA"}  # where data are: no secret, and needed where the variable is not set
_PLACES = ("data", "data_dir")  # keys of a stored configuration that may read the environment
LEAST = 8  # characters of an environment variable that could not be there by chance

# Words that occur in names of secrets, wherever; and words that do when they stand alone.
_SECRET = re.compile(
    r"passw|passphrase|sshpass|secret|token|credential|api_?keys?|(private|access|auth)_?key|bearer"
    r"|webhook|database_url|_pwd($|_)|(^|_)(key|pat|auth|dsn)($|_)",
    re.IGNORECASE,
)
_NAMES_IN_VALUE = re.compile(r"""[{,]\s*["']?([\w.-]+)["']?\s*:""")
_READS = re.compile(r"oc\.env:\s*[\"']?([\w.-]+)")
_TEXT = re.compile(r"\$\{oc\.env:([A-Za-z_]\w*)(?:,([\w./~+-]*))?\}")
_SIMPLE = re.compile(r"[\w./~+-]*")

Place = tuple[str | int, ...]


class Hidden(NamedTuple):
    """A value that came from the environment: where it is, and what is written in its place."""

    path: Place
    value: str
    text: str


def is_secret(name: str) -> bool:
    """Whether a key or variable is named like a secret: `wandb_api_key`, `MY_TOKEN`."""
    return _SECRET.search(name.replace("-", "_")) is not None


def check_words(words: Iterable[str]) -> None:
    """Refuse words of the command line that are, name or read a secret.

    Raises:
        InputError: naming the key, never the value.
    """
    for word in words:
        key, _, value = word.partition("=")
        key = key.lstrip("+~-")
        inner = _NAMES_IN_VALUE.findall(value)
        for name in [key, *inner]:
            _check_key(name)
        _check_text(key, word)


def check_config(node: DictConfig) -> None:
    """Refuse a composed configuration, whose parts may come from files, that holds a secret.

    Raises:
        InputError: naming the key, never the value.
    """
    for path, value in leaves(OmegaConf.to_container(node, resolve=False)):
        key = ".".join(map(str, path))
        _check_key(key)
        if isinstance(value, str):
            _check_text(key, value)


def _check_key(key: str) -> None:
    if any(is_secret(part) for part in re.split(r"[./@:]", key)):
        raise InputError(
            f"{key}: is named like a secret, and those are for no command line and no file. "
            f"{ADVICE}"
        )


def _check_text(key: str, text: str) -> None:
    for name in filter(is_secret, _READS.findall(text)):
        raise InputError(
            f"{key}: reads {name}, which is named like a secret; those are for no file. {ADVICE}"
        )
    for name, value in os.environ.items():
        if len(value) >= LEAST and value in text and is_secret(name):
            where = "the command line" if value in key else key
            raise InputError(
                f"{where}: holds the value of the environment variable {name}, which is named "
                f"like a secret; those are for no command line and no file. {ADVICE}"
            )


def as_typed(hydra_config: DictConfig) -> list[str]:
    """The overrides of a run as texts. Reading them one by one would put the values in."""
    return OmegaConf.to_container(hydra_config, resolve=False)["overrides"]["task"]


def leaves(node: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Paths and values of all that is neither a dict nor a list, and of empty ones."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in pairs:
        if isinstance(value, dict | list) and value:
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def hidden(cfg: DictConfig) -> list[Hidden]:
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
            found.append(Hidden(path, real[path], mark))
    return found


def _marker(texts: dict[str, str]) -> Any:
    """A resolver like `oc.env` that gives marks; `texts` learns what they stand for."""
    missing = object()

    def resolve(key: str, default: Any = missing) -> str | None:
        if is_secret(key):  # however it was written
            raise InputError(f"${{oc.env:{key}}}: is named like a secret, and not read. {ADVICE}")
        if key in OPEN or key not in os.environ:
            return oc.env(key) if default is missing else oc.env(key, default)
        mark = f"env{secrets.token_hex(8)}"  # a word that other resolvers can read, too
        plain = default is not missing and _SIMPLE.fullmatch(str(default))
        texts[mark] = f"${{oc.env:{key},{default}}}" if plain else f"${{oc.env:{key}}}"
        return mark

    return resolve


def hide(node: dict[str, Any], found: Iterable[Hidden]) -> dict[str, Any]:
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
        if now == value or now == str(Path(value).expanduser().absolute()):
            holder[name] = text
    return copy


def reveal(
    stored: dict[str, Any], own: Iterable[Hidden] = (), given: Iterable[str] = ()
) -> tuple[dict[str, Any], list[Hidden]]:
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
            value = _TEXT.sub(lambda match, key=key: _read(key, match), text)
            found.append(Hidden(path, value, text))
            holder: Any = copy
            for parent in path[:-1]:
                holder = holder[parent]
            holder[path[-1]] = value
    return copy, found


def _check_variable(key: str, match: re.Match[str]) -> None:
    if is_secret(match[1]):
        raise InputError(f"{key}={match[0]}: {match[1]} is named like a secret, and is not read.")


def _read(key: str, match: re.Match[str]) -> str:
    name, default = match.groups()
    value = os.environ.get(name, default)
    if value is None:
        raise InputError(f"{key}={match[0]}: the environment variable {name} is not set.")
    return value


def without(message: str, found: Iterable[Hidden]) -> str:
    """A message with the texts in place of values long enough to be told from other words."""
    for _, value, text in found:
        message = message.replace(value, text) if len(value) >= LEAST else message
    return message


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _copy(value) for name, value in node.items()}
    return [_copy(value) for value in node] if isinstance(node, list) else node
