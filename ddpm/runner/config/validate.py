"""Check the composed configuration before it is resolved: unknown keys and missing values."""

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
from ddpm.runner.runs import find
from ddpm.runner.terminal import shell

REFERENCE = re.compile(r"\$\{([\w.]+)\}")  # to another key
# A line whose value YAML 1.1 reads as an octal or sexagesimal number: 010, 1:30.
_ODD = re.compile(r"\s*[\w.-]+\s*:\s+([-+]?0[0-7_]+|[-+]?[1-9][\d_]*(?::[0-5]?\d)+)\s*(?:#.*)?$")
MAX_LINES = 5  # of an error message


def check(cfg: DictConfig, choices: dict[str, Any]) -> None:
    """Check that every key exists and every value can be resolved.

    Raises:
        InputError: names every key that fails, with the nearest key or the missing variable.
    """
    unknown = [no_such_key(key) for key in _unknown(cfg, catalog.known(choices))]
    errors = unknown or [*_missing(cfg), *_unresolvable(cfg)]
    if len(errors) > MAX_LINES:
        errors[MAX_LINES - 1 :] = [f"... and {len(errors) - MAX_LINES + 1} more like these."]
    if errors:
        raise (NoSuchKey if unknown else InputError)("\n".join(errors))


def drop_unchosen(cfg: DictConfig) -> None:
    """Remove the settings of trackers that are not chosen: a team's file may set those of all."""
    known = {key.name for key in catalog.keys() if key.group == "tracker"}  # noqa: SIM118
    for name, node in to_dict(cfg.tracker, resolve=False).items():
        if isinstance(node, dict) and "_target_" not in node:
            if unknown := [key for key in node if f"tracker.{name}.{key}" not in known]:
                raise NoSuchKey(no_such_key(f"tracker.{name}.{unknown[0]}"))
            OmegaConf.set_struct(cfg, False)
            del cfg.tracker[name]


def folders() -> list[Path]:
    """The folders that Hydra searches for options."""
    sources = hydra_config().runtime.config_sources
    return [Path(source.path) for source in sources if source.schema == "file"]


def own_folder() -> Path | None:
    """The folder that `--config-dir` names, as Hydra has read it."""
    sources = hydra_config().runtime.config_sources
    return next((Path(s.path) for s in sources if s.provider == "command-line"), None)


def check_files(folders: Iterable[Path], choices: dict[str, Any]) -> None:
    """Refuse chosen files that would be misread: a `# @package` without effect, or numbers that
    YAML 1.1 takes for octal or sexagesimal.

    Raises:
        InputError: names file, line and column, and the value that was read.
    """
    for path in catalog.chosen_files(folders, choices):
        if problem := catalog.misread(path):
            raise InputError(problem)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if match := _ODD.match(line):
                value = yaml.safe_load(match[1])
                raise InputError(
                    f"{path}:{number}:{match.start(1) + 1}: {match[1]} means {value} in YAML; "
                    f"write {value}, or '{match[1]}' for text."
                )


def _unknown(cfg: DictConfig, known: set[str]) -> list[str]:
    """Keys that no file under conf/ defines. Entries beside a `_target_` are checked by `build`."""
    unknown, todo = [], [("", to_dict(cfg, resolve=False))]
    while todo:
        prefix, node = todo.pop(0)
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key not in known and not any(other.startswith(f"{key}.") for other in known):
                unknown.append(key)
            elif isinstance(value, dict) and "_target_" not in value:
                todo.append((f"{key}.", value))
    return unknown


def _missing(cfg: DictConfig) -> list[str]:
    return [
        _missing_checkpoint() if key == "checkpoint" else f"{key}: must be set: {key}=..."
        for key in sorted(_without_value(cfg))
    ]


def _missing_checkpoint() -> str:
    newest = find.newest_training(Path("outputs"))
    example = "" if newest is None else f"; the newest one: {shell.word('checkpoint', newest)}"
    return f"checkpoint: must be set: checkpoint=<run folder>{example}"


def _without_value(cfg: DictConfig) -> set[str]:
    """Keys with the value `???`. OmegaConf's `missing_keys` fails if one is referred to."""
    raw = to_dict(cfg, resolve=False)
    return {".".join(map(str, path)) for path, value in redaction.leaves(raw) if value == "???"}


def _unresolvable(cfg: DictConfig) -> list[str]:
    """A line for each value whose reference cannot be resolved."""
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
        if not bad & set(REFERENCE.findall(raw))  # or the key referred to has a line of its own
    ]


def _interpolations(cfg: DictConfig) -> Iterator[tuple[str, str, Any]]:
    """The key, the raw text and a function that resolves it, for each value with a `${`."""
    todo: list[Any] = [cfg]  # OmegaConf has no public way to get a raw node
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
    """A short form of an error message of OmegaConf."""
    if name := re.search(r"Environment variable '([^']+)' not found", text):
        return f"the environment variable {name[1]} is not set."
    if name := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"refers to {name[1]}, which is no key."
    if name := re.search(r"Unsupported interpolation type (\S+)", text):
        return f"no such resolver: {name[1]}."
    return " ".join(text.splitlines()[0].split())[:160]
