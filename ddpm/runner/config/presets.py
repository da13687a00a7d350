"""Which keys of a run were set by presets: files that are chosen along with a data set."""

from typing import Any

from ddpm.runner.config import catalog
from ddpm.runner.config.rules import look_up

GROUPS = ("size", "budget", "rate")  # chosen by the names of data, model, job and optimizer


def lines(config: dict[str, Any]) -> list[str]:
    """A line for each preset of a run that counts: its name, and what it sets."""
    choices = config["choices"]
    found = [("data", choices.get("data"), _chosen_by_data(choices))]
    found += [(group, choices.get(group), _set_by(group, config)) for group in GROUPS]
    return [f"{group}={option}: {' '.join(words)}" for group, option, words in found if words]


def _chosen_by_data(choices: dict[str, Any]) -> list[str]:
    """The options of other groups that a data set brings along, as far as they were kept."""
    path = catalog.CONF / "data" / f"{choices.get('data')}.yaml"
    entries = catalog.read(path).get("defaults", []) if path.is_file() else []
    words = []
    for entry in entries:
        for name, option in entry.items() if isinstance(entry, dict) else ():
            group = name.removeprefix("override /").partition("@")[0]
            if choices.get(group) == option:
                words.append(f"{group}={option}")
    return words


def _set_by(group: str, config: dict[str, Any]) -> list[str]:
    """What a preset changes, as far as nobody has changed it again."""
    path = catalog.CONF / group / f"{config['choices'].get(group)}.yaml"
    if not path.is_file():
        return []
    usual = catalog.defaults(config["choices"])
    return [
        f"{key}={_written(value)}"
        for key, value in catalog.flatten(catalog.read(path))
        if not isinstance(value, dict) and look_up(config, key) == value and usual.get(key) != value
    ]


def _written(value: Any) -> str:
    """A value as one types it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "")
