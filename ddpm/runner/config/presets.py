"""The keys that presets set in a run. Presets are option files that follow from other choices."""

from typing import Any

from ddpm.runner.config import catalog
from ddpm.runner.roles import FOLLOWING_PRESETS
from ddpm.runner.safe_io.tree import get_path


def lines(config: dict[str, Any]) -> list[str]:
    """A line for each preset that applies: its name, and the keys that it sets."""
    choices = config["choices"]
    settings = {"data": _chosen_by_data(choices)}
    settings |= {group: _set_by(group, config) for group in FOLLOWING_PRESETS}
    return [
        f"{group}={choices.get(group)}: {' '.join(overrides)}"
        for group, overrides in settings.items()
        if overrides
    ]


def _chosen_by_data(choices: dict[str, Any]) -> list[str]:
    """The options of other groups that the data set chooses, unless the user chose others."""
    path = catalog.CONF / "data" / f"{choices.get('data')}.yaml"
    entries = catalog.read(path).get("defaults", []) if path.is_file() else []
    chosen = []
    for entry in entries:
        for name, option in entry.items() if isinstance(entry, dict) else ():
            group = name.removeprefix("override /").partition("@")[0]
            if choices.get(group) == option:
                chosen.append(f"{group}={option}")
    return chosen


def _set_by(group: str, config: dict[str, Any]) -> list[str]:
    """The keys that a preset changes from their defaults, unless the user changed them again."""
    path = catalog.CONF / group / f"{config['choices'].get(group)}.yaml"
    if not path.is_file():
        return []
    usual = catalog.defaults(config["choices"])
    return [
        f"{key}={_written(value)}"
        for key, value in catalog.flatten(catalog.body(path))
        if not isinstance(value, dict)
        and get_path(config, key) == value
        and usual.get(key) != value
    ]


def _written(value: Any) -> str:
    """A value as the command line writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "")
