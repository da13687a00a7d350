"""The W&B settings of a run, from their four sources.

In order of precedence: the command line; files (an experiment, a team, the user's own options);
W&B's environment variables; the defaults in conf/tracker/wandb.yaml. The result is stored in the
run's configuration, so that a resumed run keeps it.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from ddpm.errors import InputError, shown
from ddpm.runner.config import catalog, redaction, rules
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
KEYS = tuple(f"{PLACE}.{name}" for name in VARIABLES)  # their values are texts
# The values in conf/tracker/wandb.yaml.
DEFAULTS: dict[str, Any] = dict.fromkeys(VARIABLES) | {"project": "ddpm", "tags": []}


def fill_from_env(
    config: dict[str, Any],
    overrides: Iterable[Override],
    folders: Iterable[Path],
    choices: dict[str, Any],
) -> tuple[str, ...]:
    """Fill the settings that neither the command line nor a file sets from W&B's variables.

    Args:
        config: resolved plain data; its `tracker.wandb`, if any, is modified.
        overrides: of the command line.
        folders: those that Hydra searches for options.
        choices: the chosen options, by group.

    Returns:
        the keys that neither the command line nor a file sets.

    Raises:
        InputError: the value of a variable is not allowed.
    """
    node = _node(config)
    if node is None:
        return ()
    overrides, files = list(overrides), _files(folders, choices)
    unset = tuple(key for key in VARIABLES if not _is_set(key, node, overrides, files))
    for key in VARIABLES:
        bound = key in ("entity", "project") and limits.in_sweep()  # W&B's sweep decides these
        value = _read(key) if key in unset or bound else None
        node[key] = node.get(key) if value is None else value
    limits.wanted_mode(node.get("mode"))
    return unset


def _node(config: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of W&B, if a configuration has them."""
    node = get_path(config, PLACE)
    return node if isinstance(node, dict) else None


def _is_set(key: str, node: dict[str, Any], overrides: list[Override], files: list[Path]) -> bool:
    """Whether the command line or a file sets a key. A null in a file does not count."""
    if any(name == f"{PLACE}.{key}" for override in overrides for name in _keys_of(override)):
        return True
    if node.get(key) != DEFAULTS[key]:
        return node.get(key) is not None
    return key == "project" and any(_sets_project(path) for path in files)


def _keys_of(override: Override) -> Iterator[str]:
    """The keys that an override sets, also those inside a value in braces."""
    key, value = override.key_or_group, override.value()
    yield key
    if isinstance(value, dict):
        yield from (name for name, _ in catalog.flatten(value, key))


def _files(folders: Iterable[Path], choices: dict[str, Any]) -> list[Path]:
    """The files that a configuration was composed from, except the one with the defaults."""
    folders, defaults = list(folders), catalog.CONF / "tracker" / "wandb.yaml"
    main = [folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()]
    return [path for path in [*main, *catalog.chosen_files(folders, choices)] if path != defaults]


def _sets_project(path: Path) -> bool:
    """Whether a file sets a project; False if it cannot be read."""
    try:
        if path.name == "config.yaml":
            return f"{PLACE}.project" in dict(catalog.flatten(catalog.read(path)))
        return any(key.name == f"{PLACE}.project" for key in catalog.keys_in(path))
    except (InputError, OSError):
        return False


def _read(key: str) -> Any:
    """The value of a setting's environment variable; None if that is unset or empty.

    Raises:
        InputError: the value is not allowed, or contains a secret.
    """
    variable = VARIABLES[key]
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    if (name := redaction.secret_in(text)) is not None:
        raise InputError(
            f"{variable}: contains the value of the variable {name}, which is named like a "
            "secret; W&B would show it to others."
        )
    if key == "tags":
        value: Any = [tag.strip() for tag in text.split(",") if tag.strip()]
        if too_long := [tag for tag in value if len(tag) > limits.TAG]:
            raise InputError(
                f"{variable}={shown(text)}: the tag {shown(too_long[0])} has {len(too_long[0])} "
                f"characters, at most {limits.TAG} are allowed; tags are separated by commas."
            )
        return value
    rule = rules.RULES[f"{PLACE}.{key}"]
    if not rule.test(text):
        raise InputError(f"{variable}={shown(text)}: must be {rule.allowed}.")
    return text


def normalise(config: dict[str, Any]) -> None:
    """Convert numbers to texts and a single tag to a list.

    Older versions did not store the values of variables; in their runs the variables are read
    again.
    """
    node = _node(config)
    if node is None:
        return
    if "job_type" not in node:  # written by an older version
        empty = (key for key in ("entity", "group", "notes") if node.get(key) is None)
        node |= {key: _read(key) for key in empty} | {"job_type": None}
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


def keep_stored(config: dict[str, Any], stored: dict[str, Any], unset: Iterable[str]) -> None:
    """Keep a resumed run's stored settings of the keys that the user does not set again."""
    node, old = _node(config), _node(stored)
    if node is None or old is None:
        return
    for key in unset:
        value, rule = old.get(key), rules.RULES[f"{PLACE}.{key}"]
        if "job_type" not in old and value == DEFAULTS[key]:
            continue  # an older version did not store the values of variables
        allowed = rule.null if value is None else isinstance(value, rule.type) and rule.test(value)
        if allowed and "${" not in str(value):
            node[key] = value


def check_login(config: dict[str, Any]) -> None:
    """Check the login to W&B if the run must be online; only then wandb is imported.

    Raises:
        InputError: the user is not logged in.
    """
    node = _node(config)
    if node is not None and limits.wanted_mode(node.get("mode")) == "online":
        from ddpm.trackers.wandb_client import session

        session.check_login()
