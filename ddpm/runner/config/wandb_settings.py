"""Where each W&B setting of a run comes from, and how unusual values are normalised.

What counts first: the command line; then files (an experiment, a team, an option of one's own);
then W&B's variables of the environment; then the defaults of conf/tracker/wandb.yaml. What counted
is what the run's configuration says, so that a run that goes on keeps it.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm.errors import InputError, shown
from ddpm.runner.config import catalog, redaction, rules
from ddpm.runner.safe_io.secret_names import is_secret_variable
from ddpm.runner.safe_io.tree import get_path
from ddpm.trackers.wandb_client import limits

PLACE = "tracker.wandb"
VARIABLES = {
    "entity": "WANDB_ENTITY",
    "project": "WANDB_PROJECT",
    "group": "WANDB_RUN_GROUP",
    "name": "WANDB_NAME",
    "tags": "WANDB_TAGS",
    "notes": "WANDB_NOTES",
    "job_type": "WANDB_JOB_TYPE",
}
KEYS = tuple(f"{PLACE}.{name}" for name in VARIABLES)  # all of them texts
# What conf/tracker/wandb.yaml says where nobody has changed it.
DEFAULTS: dict[str, Any] = dict.fromkeys(VARIABLES) | {"project": "ddpm", "tags": []}


def fill_from_env(
    config: dict[str, Any],
    overrides: Iterable[Override],
    folders: Iterable[Path],
    choices: dict[str, Any],
) -> tuple[str, ...]:
    """Fill the settings that neither the command line nor a file sets from W&B's variables.

    Args:
        config: resolved plain data; its `tracker.wandb`, if any, is changed.
        overrides: of the command line.
        folders: those that options were looked for in.
        choices: the chosen options, by group.

    Returns:
        the settings that nobody has typed.

    Raises:
        InputError: the value of a variable is not allowed.
    """
    node = _node(config)
    if node is None:
        return ()
    overrides, files = list(overrides), _files(folders, choices)
    untyped = tuple(key for key in VARIABLES if not _is_typed(key, node, overrides, files))
    for key in VARIABLES:
        bound = key in ("entity", "project") and limits.in_sweep()  # which says where
        value = _read(key) if key in untyped or bound else None
        node[key] = node.get(key) if value is None else value
    limits.wanted_mode(node.get("mode"))
    return untyped


def _node(config: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of W&B, where a configuration has them."""
    node = get_path(config, PLACE)
    return node if isinstance(node, dict) else None


def _is_typed(key: str, node: dict[str, Any], overrides: list[Override], files: list[Path]) -> bool:
    """Whether the command line or a file says a setting. A null in a file says nothing."""
    if any(name == f"{PLACE}.{key}" for override in overrides for name in _said(override)):
        return True
    if node.get(key) != DEFAULTS[key]:
        return node.get(key) is not None
    return key == "project" and any(_says_project(path) for path in files)


def _said(override: Override) -> Iterator[str]:
    """The keys that a word of the command line says, each of a group in braces."""
    key, value = override.key_or_group, override.value()
    yield key
    if isinstance(value, dict):
        yield from (f"{key}.{name}" for name in _flat(value))


def _flat(node: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")


def _files(folders: Iterable[Path], choices: dict[str, Any]) -> list[Path]:
    """What a configuration was composed from, without the file of our own defaults."""
    options = [(group, name) for group, c in choices.items() for name in catalog.as_list(c)]
    found = [Path("config.yaml"), *(Path(str(group), f"{name}.yaml") for group, name in options)]
    ours = catalog.CONF / "tracker" / "wandb.yaml"
    paths = (folder / path for folder in folders for path in found)
    return [path for path in paths if path != ours and os.path.isfile(path)]


def _says_project(path: Path) -> bool:
    """Whether a file names a project; one that cannot be read does not."""
    try:
        text = path.read_text(encoding="utf-8")
        if "project" not in text:
            return False
        node = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError):
        return False
    found = re.search(r"^#\s*@package\s+(\S+)", text, re.MULTILINE)
    package = found[1] if found else path.parent.name if path.stem != "config" else "_global_"
    prefix = "" if package == "_global_" else f"{package}."
    return isinstance(node, dict) and f"{PLACE}.project" in _flat(node, prefix)


def _read(key: str) -> Any:
    """What a variable says of a setting; None where it is not set, or empty.

    Raises:
        InputError: it is not allowed, or holds a secret.
    """
    variable = VARIABLES[key]
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    for name, secret in os.environ.items():
        if len(secret) >= redaction.LEAST and secret in text and is_secret_variable(name, secret):
            raise InputError(
                f"{variable}: holds the value of the variable {name}, which is named like a "
                "secret; W&B shows it to others."
            )
    if key == "tags":
        value: Any = [tag.strip() for tag in text.split(",") if tag.strip()]
        if too_long := [tag for tag in value if len(tag) > limits.TAG]:
            raise InputError(
                f"{variable}={shown(text)}: the tag {shown(too_long[0])} has {len(too_long[0])} "
                f"characters, at most {limits.TAG} are allowed; tags are parted by commas."
            )
        return value
    rule = rules.RULES[f"{PLACE}.{key}"]
    if not rule.test(text):
        raise InputError(f"{variable}={shown(text)}: must be {rule.allowed}.")
    return text


def normalise(config: dict[str, Any]) -> None:
    """Make of settings what is meant by them: numbers become texts, a single tag a list. In a run
    of before they were stored, variables say what was left to them then."""
    node = _node(config)
    if node is None:
        return
    if "job_type" not in node:
        unsaid = (key for key in ("entity", "group", "notes") if node.get(key) is None)
        node |= {key: _read(key) for key in unsaid} | {"job_type": None}
    for key in VARIABLES.keys() - {"project", "tags"}:
        node[key] = None if node.get(key) == "" else _text(node.get(key))
    project = node.get("project")
    node["project"] = DEFAULTS["project"] if project is None else _text(project)
    tags = node.get("tags")
    listed = tags if isinstance(tags, list) else [] if tags is None else [tags]
    node["tags"] = list(dict.fromkeys(map(_text, listed))) if _hashable(listed) else listed


def _text(value: Any) -> Any:
    """A number as text."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if numeric else value


def _hashable(values: list[Any]) -> bool:
    return not any(isinstance(value, list | dict) for value in values)


def keep_stored(config: dict[str, Any], stored: dict[str, Any], untyped: Iterable[str]) -> None:
    """Give a run that goes on the settings it began with, where nobody has typed others."""
    node, old = _node(config), _node(stored)
    if node is None or old is None:
        return
    for key in untyped:
        value, rule = old.get(key), rules.RULES[f"{PLACE}.{key}"]
        if "job_type" not in old and value == DEFAULTS[key]:
            continue  # of a program that did not store what variables said
        allowed = rule.null if value is None else isinstance(value, rule.type) and rule.test(value)
        if allowed and "${" not in str(value):
            node[key] = value


def check_login(config: dict[str, Any]) -> None:
    """See that somebody is logged in where a run has to be online; only there wandb is imported.

    Raises:
        InputError: nobody is.
    """
    node = _node(config)
    if node is not None and limits.wanted_mode(node.get("mode")) == "online":
        from ddpm.trackers.wandb_client import session

        session.check_login()
