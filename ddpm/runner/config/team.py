"""A team's file, conf/team/*.yaml: shared settings that no result depends on."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm.errors import InputError, shown
from ddpm.runner import roles
from ddpm.runner.safe_io.tree import flatten

NONE = "none"
CHOICES = ("override /tracker", "override /hydra/launcher")


def keys(folders: Iterable[Path], choice: Any) -> list[str]:
    """The keys and groups that the chosen team's file sets.

    Raises:
        InputError: it sets a key that a team's file may not set.
    """
    if not isinstance(choice, str) or choice == NONE:
        return []
    files = (folder / "team" / f"{choice}.yaml" for folder in folders)
    return [key for path in files if path.is_file() for key in _keys_of(path)]


def _keys_of(path: Path) -> list[str]:
    """The keys of a file, and the groups of its defaults list."""
    try:
        node: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False) or {}
    except (OmegaConfBaseException, ValueError, OSError):  # a number, a damaged list
        node = None
    defaults = node.pop("defaults", None) or [] if isinstance(node, dict) else None
    if not isinstance(defaults, list):
        raise InputError(
            f"{path}: a team's file holds keys and values, as `data_dir: /shared`; this one holds "
            f"{'a list' if isinstance(node, list) else 'something else'}."
        )
    keys = []
    for entry in defaults:
        name = next(iter(entry), "") if isinstance(entry, dict) else str(entry)
        if name != "_self_" and name not in CHOICES:
            raise InputError(_refusal(path, f"defaults: {shown(name)}"))
        keys += [name.rpartition("/")[2]] if name == "override /tracker" else []
    for key, _ in flatten(node):
        if not roles.within(key, roles.TEAM):
            raise InputError(_refusal(path, key))
        keys.append(key)
    return [key for key in keys if not key.startswith("hydra.")]


def _refusal(path: Path, key: str) -> str:
    return (
        f"{path}: {key}: a team's file may set {', '.join(roles.TEAM)} and choose a tracker or "
        "launcher; keys that results depend on belong in conf/experiment/."
    )
