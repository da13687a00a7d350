"""Old names of keys, on the command line and in users' own files, still work, with a warning.

Remove an entry of `old_names.RENAMED` one version after it was added, and these functions with the
last one.
"""

import logging
from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf, open_dict

from ddpm.runner.config.composed import to_dict
from ddpm.runner.runs.old_names import RENAMED, override
from ddpm.runner.safe_io.tree import get_path, key_of

logger = logging.getLogger(__name__)

_noted: set[str] = set()  # old keys that were logged already


def in_words(words: Iterable[str]) -> list[str]:
    """The overrides of a command line with today's keys."""
    return [_noting(word, override(word)) for word in words]


def in_files(cfg: DictConfig, typed: Iterable[str]) -> None:
    """Move the values of old keys in the composed configuration to the new keys.

    Args:
        typed: keys of the command line; they win over files.
    """
    for old, new in RENAMED.items():
        parent, _, name = old.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if not isinstance(node, DictConfig) or name not in node:
            continue
        value = get_path(to_dict(cfg, resolve=False), old)
        with open_dict(cfg):
            del node[name]
            if new not in set(typed):
                OmegaConf.update(cfg, new, value)
        _noting(old, new)


def _noting(old: str, new: str) -> str:
    """Return the new name, and log a line about the old key once in each process."""
    key, today = key_of(old), key_of(new)
    if key != today and key not in _noted:
        _noted.add(key)
        logger.warning("%s is now called %s; the old name works in this version.", key, today)
    return new
