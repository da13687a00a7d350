"""Keep secrets out of files. Keys named like secrets are refused, and values of environment
variables are stored as `${oc.env:NAME}`, to be read again when the run is resumed.

ddpm/runner/safe_io/secret_names.py decides which names and values count as secrets.
"""

import functools
import operator
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
OPEN = {"DDPM_DATA"}  # variables stored by value: a data path is no secret, and must be resolvable
_MAY_READ = ("data", "data_dir")  # keys of a stored configuration that may read the environment
MIN_LENGTH = 8  # of a variable's value that is searched for in texts; shorter ones match by chance
_ENVIRONMENT = "hydra.job.env_set."  # values below this key become texts
# A reference to another key, or to a number in the environment.
_REFERENCE = re.compile(r"\$\{[\w.\[\]]+\}|\$\{oc\.decode:\$\{oc\.env:\w+(,[\d.e+-]{0,18})?\}\}")
_NAMES_IN_VALUE = re.compile(r"""[{,]\s*["']?([\w.-]+)["']?\s*:""")
_READS = re.compile(r"oc\.env:\s*[\"']?([\w.-]+)")
_TEXT = re.compile(r"\$\{oc\.env:([A-Za-z_]\w*)(?:,([\w./~+-]*))?\}")
_SIMPLE = re.compile(r"[\w./~+-]*")

KeyPath = tuple[str | int, ...]


class EnvValue(NamedTuple):
    """A value that came from the environment.

    Args:
        path: the keys and indices that lead to it in the configuration.
        value: the value.
        text: the reference stored in its place, like `${oc.env:NAME}`.
    """

    path: KeyPath
    value: str
    text: str


def check_words(words: Iterable[str]) -> None:
    """Refuse arguments of the command line that contain, name or read a secret.

    Raises:
        InputError: names the key, never the value.
    """
    for word in words:
        key, equals, value = word.partition("=")
        key = key.lstrip("+~-")
        inner = _NAMES_IN_VALUE.findall(value)
        if is_secret_place(_parts(key)) or any(map(is_secret, inner)):
            # An argument without "=" may be a flag whose value is the next argument.
            for path, leaf in _read_value(value) if equals else [((), key)]:
                _check_value(".".join([key, *map(str, path)]), leaf, typed=True)
        _check_text(key, word)


def _read_value(text: str) -> Iterator[tuple[KeyPath, Any]]:
    """The leaves of a value as Hydra parses it, for all choices of a sweep. References to other
    keys are left out: the values they resolve to are checked later."""
    try:
        parsed = OverridesParser.create().parse_override(f"x={text}").value()
    except HydraException:
        yield from (((), text), *(((name,), text) for name in _NAMES_IN_VALUE.findall(text)))
        return
    if isinstance(parsed, RangeSweep | IntervalSweep):  # of numbers
        return
    if isinstance(parsed, Glob):
        parsed = text
    for choice in parsed.list if isinstance(parsed, ChoiceSweep) else [parsed]:
        for path, leaf in leaves({"": choice}):
            if not _REFERENCE.fullmatch(str(leaf)):
                yield path[1:], leaf


def check_config(node: DictConfig) -> None:
    """Refuse a composed configuration that holds a secret, also from a file.

    Raises:
        InputError: names the key, never the value.
    """
    for path, value in leaves(OmegaConf.to_container(node, resolve=False)):
        key = ".".join(map(str, path))
        if isinstance(value, str):
            _check_text(key, value)
        if is_secret_place(_parts(key)):
            _check_value(key, _resolved(node, path, value))


def _resolved(node: Any, path: KeyPath, value: Any) -> Any:
    """Resolve a value that is a reference; None if that fails, which is reported later."""
    if not isinstance(value, str) or "${" not in value:
        return value
    try:
        return _at(node, path)
    except (OmegaConfBaseException, ValueError):
        return None


def _at(node: Any, path: Iterable[str | int]) -> Any:
    """The value at the end of a path of keys and indices."""
    return functools.reduce(operator.getitem, path, node)


def _check_value(key: str, value: Any, *, typed: bool = False) -> None:
    """Refuse a value whose key is named like a secret.

    Args:
        typed: whether it comes from the command line, where digits may be a password.
    """
    parts = _parts(key)
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    name = next((part for part in reversed(parts) if not part.isdecimal()), "")
    digits_count = key.startswith(_ENVIRONMENT) or (typed and is_password(name))
    if is_secret_place(parts) and (not is_harmless(value) or (numeric and digits_count)):
        raise InputError(
            f"{key}: is named like a secret. Secrets are not accepted on the command line or in "
            f"files. {ADVICE}\nIf it is no secret, rename the key; numbers, true, false and null "
            "are accepted under any name."
        )


def _parts(key: str) -> list[str]:
    return re.split(r"[./@:]", key)


def _check_text(key: str, text: str) -> None:
    for name in filter(_variable_is_secret, _READS.findall(text)):
        raise InputError(
            f"{key}: reads {name}, which is named like a secret. Secrets are not accepted in "
            f"files. {ADVICE}"
        )
    if (name := secret_in(text)) is not None:
        where = "the command line" if os.environ[name] in key else key
        raise InputError(
            f"{where}: contains the value of the environment variable {name}, which is named "
            f"like a secret. Secrets are not accepted on the command line or in files. {ADVICE}"
        )


def secret_in(text: str) -> str | None:
    """The first environment variable that is named like a secret and whose value is in a text."""
    for name, value in os.environ.items():
        if len(value) >= MIN_LENGTH and value in text and is_secret_variable(name, value):
            return name
    return None


def _variable_is_secret(variable: str) -> bool:
    """Whether a variable is named like a secret, and its current value is not just a number."""
    return is_secret_variable(variable, os.environ.get(variable))


def leaves(node: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Paths and values of everything that is not a dict or a list, and of empty dicts and lists."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in pairs:
        if isinstance(value, dict | list) and value:
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def env_values(cfg: DictConfig) -> list[EnvValue]:
    """Find the texts in `cfg` that contain environment variables, also through other keys.

    The configuration is resolved twice, the second time with marks instead of the variables.
    Numbers and booleans are no secrets and are left out.

    Raises:
        InputError: one variable holds a whole list or group.
    """
    texts: dict[str, str] = {}
    real = dict(leaves(OmegaConf.to_container(cfg, resolve=True)))
    try:
        OmegaConf.register_new_resolver("oc.env", _marker(texts), replace=True)
        marked = dict(leaves(OmegaConf.to_container(cfg, resolve=True)))
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    values = []
    for path, value in marked.items():
        if not isinstance(value, str) or not any(mark in value for mark in texts):
            continue
        for mark, text in texts.items():
            value = value.replace(mark, text)
        if path not in real:
            key = ".".join(map(str, path))
            raise InputError(f"{key}={value}: use one variable for each of its values.")
        if isinstance(real[path], str):
            values.append(EnvValue(path, real[path], value))
    return values


def _marker(texts: dict[str, str]) -> Any:
    """A resolver like `oc.env` that returns marks, and adds {mark: reference} to `texts`."""
    missing = object()

    def resolve(key: str, default: Any = missing) -> str | None:
        if _variable_is_secret(key):  # `_check_text` sees only literal names
            raise InputError(f"${{oc.env:{key}}}: is named like a secret, and not read. {ADVICE}")
        if key in OPEN or key not in os.environ:
            return oc.env(key) if default is missing else oc.env(key, default)
        mark = f"env{secrets.token_hex(8)}"  # a plain word, which other resolvers accept
        plain = default is not missing and _SIMPLE.fullmatch(str(default))
        texts[mark] = f"${{oc.env:{key},{default}}}" if plain else f"${{oc.env:{key}}}"
        return mark

    return resolve


def mask_env(node: dict[str, Any], env_values: Iterable[EnvValue]) -> dict[str, Any]:
    """Copy plain data with references in place of values that came from the environment.

    A value that was changed since is kept, unless it was only made an absolute path.
    """
    copy = _copy(node)
    for path, value, text in env_values:
        try:
            current = _at(copy, path)
        except (KeyError, IndexError, TypeError):
            continue
        if current in (value, str(Path(os.path.expanduser(value)).absolute())):
            _at(copy, path[:-1])[path[-1]] = text
    return copy


def unmask_env(
    stored: dict[str, Any], current: Iterable[EnvValue] = (), typed: Iterable[str] = ()
) -> tuple[dict[str, Any], list[EnvValue]]:
    """Copy a stored configuration with the values of environment variables; list these, too.

    Only `${oc.env:NAME}` and `${oc.env:NAME,default}` are read, and only for data paths or if the
    configuration of this start reads the same variable: an untrusted configuration must not send
    the user's environment to a tracker.

    Args:
        current: the values that the configuration of this start reads.
        typed: keys of its command line.

    Raises:
        InputError: a variable is not set, is named like a secret, or may not be read.
    """
    texts = {path: text for path, _, text in current}
    copy, env_values = _copy(stored), []
    for path, text in leaves(stored):
        if isinstance(text, str) and _TEXT.search(text) and path[0] != "overrides":
            key = ".".join(map(str, path))
            for match in _TEXT.finditer(text):
                if _variable_is_secret(match[1]):
                    raise InputError(
                        f"{key}={match[0]}: {match[1]} is named like a secret, and is not read."
                    )
            if path[0] not in _MAY_READ and texts.get(path) != text and key not in typed:
                raise InputError(
                    f"{key}={text}: a stored configuration may not read the environment for this "
                    f"key. To allow it, repeat it on the command line: '{key}={text}'."
                )
            value = _TEXT.sub(functools.partial(_read, key), text)
            env_values.append(EnvValue(path, value, text))
            _at(copy, path[:-1])[path[-1]] = value
    return copy, env_values


def _read(key: str, match: re.Match[str]) -> str:
    name, default = match.groups()
    value = os.environ.get(name, default)
    if value is None:
        raise InputError(f"{key}={match[0]}: the environment variable {name} is not set.")
    return value


def redact(message: str, env_values: Iterable[EnvValue]) -> str:
    """Replace values of the environment in a message by their references, except short ones."""
    for _, value, text in env_values:
        message = message.replace(value, text) if len(value) >= MIN_LENGTH else message
    return message


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _copy(value) for name, value in node.items()}
    return [_copy(value) for value in node] if isinstance(node, list) else node
