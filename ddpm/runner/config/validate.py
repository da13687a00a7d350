"""What Hydra composed, before it is resolved: keys that nobody reads, values that are not there."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm.errors import InputError, NoSuchKey, shown
from ddpm.runner.config import catalog, redaction
from ddpm.runner.config.composed import hydra_config, to_dict
from ddpm.runner.config.explain import no_such_key

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
# Octal numbers and minutes, in a line of their own.
_ODD = re.compile(r"\s*[\w.-]+\s*:\s+([-+]?0[0-7_]+|[-+]?[1-9][\d_]*(?::[0-5]?\d)+)\s*(?:#.*)?$")
MOST = 5  # lines of an answer


def check(cfg: DictConfig, choices: dict[str, Any]) -> None:
    """See that every key is one of the program's and every value can be read.

    Raises:
        InputError: naming all that do not, with the variable that is missing or the nearest key.
    """
    unknown = [no_such_key(key) for key in _unknown(cfg, catalog.known(choices))]
    wrong = unknown or [*_missing(cfg), *_unresolvable(cfg)]
    if len(wrong) > MOST:
        wrong[MOST - 1 :] = [f"... and {len(wrong) - MOST + 1} more like these."]
    if wrong:
        raise (NoSuchKey if unknown else InputError)("\n".join(wrong))


def drop_unchosen(cfg: DictConfig) -> None:
    """Take out settings of trackers that are not chosen: a team's file may set those of all."""
    known = {key.name for key in catalog.keys() if key.group == "tracker"}  # noqa: SIM118
    for name, node in to_dict(cfg.tracker, resolve=False).items():
        if isinstance(node, dict) and "_target_" not in node:
            if unknown := [key for key in node if f"tracker.{name}.{key}" not in known]:
                raise NoSuchKey(no_such_key(f"tracker.{name}.{unknown[0]}"))
            OmegaConf.set_struct(cfg, False)
            del cfg.tracker[name]


def folders() -> list[Path]:
    """The folders that options were looked for in."""
    sources = hydra_config().runtime.config_sources
    return [Path(source.path) for source in sources if source.schema == "file"]


def check_files(folders: Iterable[Path], choices: dict[str, Any]) -> None:
    """Refuse chosen files that Hydra reads otherwise than they look: a `# @package` that has no
    effect, and numbers that YAML 1.1 reads otherwise than people do.

    Raises:
        InputError: names file, line and column, and what was read.
    """
    options = [(group, name) for group, c in choices.items() for name in catalog.as_list(c)]
    paths = [folder / str(group) / f"{name}.yaml" for folder in folders for group, name in options]
    for path in filter(os.path.isfile, paths):  # a name may be too long for one
        if problem := catalog.misread(path):
            raise InputError(problem)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if found := _ODD.match(line):
                value = yaml.safe_load(found[1])
                raise InputError(
                    f"{path}:{number}:{found.start(1) + 1}: {found[1]} means {value} in YAML; "
                    f"write {value}, or '{found[1]}' for text."
                )


def _unknown(cfg: DictConfig, known: set[str]) -> list[str]:
    """Keys of no file under conf/. Those of a `_target_` are held against its parameters later."""
    found, todo = [], [("", to_dict(cfg, resolve=False))]
    while todo:
        prefix, node = todo.pop(0)
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key not in known and not any(other.startswith(f"{key}.") for other in known):
                found.append(key)
            elif isinstance(value, dict) and "_target_" not in value:
                todo.append((f"{key}.", value))
    return found


def _missing(cfg: DictConfig) -> list[str]:
    return [f"{key}: must be given, as {key}=..." for key in sorted(_without_value(cfg))]


def _without_value(cfg: DictConfig) -> set[str]:
    """Keys that are `???`. OmegaConf's `missing_keys` fails where another value refers to one."""
    raw = to_dict(cfg, resolve=False)
    return {".".join(map(str, path)) for path, value in redaction.leaves(raw) if value == "???"}


def _unresolvable(cfg: DictConfig) -> list[str]:
    """A line for each value that refers to something which is not there."""
    failed: dict[str, tuple[str, str]] = {}
    for key, raw, read in _interpolations(cfg):
        try:
            read()
        except (OmegaConfBaseException, ValueError) as error:
            failed[key] = raw, _reason(str(error))
    bad = _without_value(cfg) | failed.keys()
    return [
        f"{key}={shown(raw)}: {reason}"
        for key, (raw, reason) in failed.items()
        if not bad & set(_REFERENCE.findall(raw))  # or the key referred to has a line of its own
    ]


def _interpolations(cfg: DictConfig) -> Iterator[tuple[str, str, Any]]:
    """Keys, raw texts and a way to read each value with a `${` in it."""
    todo: list[Any] = [cfg]  # OmegaConf offers no public way to ask for a raw node
    while todo:
        node = todo.pop(0)
        names = node if isinstance(node, DictConfig) else range(len(node))
        for name in names:
            inner = node._get_node(name)
            if inner is None:
                continue
            if inner._is_interpolation():
                key = inner._get_full_key(None)
                yield key, str(inner._value()), lambda node=node, name=name: node[name]
            elif isinstance(inner, DictConfig | ListConfig) and not (
                inner._is_none() or inner._is_missing()
            ):
                todo.append(inner)


def _reason(text: str) -> str:
    """What OmegaConf says, in few words."""
    if name := re.search(r"Environment variable '([^']+)' not found", text):
        return f"the environment variable {name[1]} is not set."
    if name := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"there is no key {name[1]} to refer to."
    if name := re.search(r"Unsupported interpolation type (\S+)", text):
        return f"there is no resolver {name[1]}."
    return " ".join(text.splitlines()[0].split())[:160]
