"""What hundreds of tests would do anew each time, done once for a process.

Hydra composes the configuration twice, first only to read `hydra.mode`, and parses the same files
and the same interpolations each time. Here that is remembered. Tests that start `run.py` as a
process of its own have none of this.
"""

import copy
import functools
import os
from pathlib import Path

import hydra
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning_fabric.utilities import registry
from omegaconf import base

LAUNCHER = "hydra/launcher/basic"  # a run puts its own in this place, a bare composition does not
# Whose files do not change while the tests run; others are read each time.
UNCHANGING = (f"file://{Path(__file__).parents[2] / 'conf'}", "pkg://hydra.conf")


def share_compositions() -> None:
    """Let Hydra compose once for each run, from files that it has parsed once."""
    assert hydra.__version__.startswith("1.3."), "see whether Hydra still works as it did"
    Hydra.get_mode = _get_mode(Hydra.get_mode)
    ConfigRepository.load_config = _load_config(ConfigRepository.load_config)
    config_loader_impl.create_defaults_list = _choose(config_loader_impl.create_defaults_list)
    ConfigLoaderImpl._compose_config_from_defaults_list = _merge(
        ConfigLoaderImpl._compose_config_from_defaults_list
    )
    OverridesParser.parse_rule = _parse_rule(OverridesParser.parse_rule)
    registry.entry_points = functools.cache(registry.entry_points)  # asked for by each Fabric
    base.parse = functools.lru_cache(maxsize=4096)(base.parse)  # a tree that is only read


def _get_mode(get_mode):
    """No mode where neither the command line nor a folder of the user's could set one."""

    def get(self, config_name, overrides):
        sources = self.config_loader.get_search_path().get_path()
        given = any(source.provider == "command-line" for source in sources)
        if given or any("hydra.mode" in word for word in overrides):
            return get_mode(self, config_name, overrides)
        return None

    return get


def _load_config(load_config):
    """Remember what the files under conf/ and Hydra's own hold."""
    known = {}

    def load(self, config_path):
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or config_path == LAUNCHER or not _is_unchanging(source):
            return load_config(self, config_path)
        key = (source.scheme(), source.path, config_path)
        if key not in known:
            known[key] = load_config(self, config_path)
        found = copy.copy(known[key])
        found.header, found.defaults_list = copy.deepcopy((found.header, found.defaults_list))
        return found  # its configuration is everybody's; only a merge would change it

    return load


def _parse_rule(parse_rule):
    """Remember what the words of the command line mean."""
    known = {}

    def parsed(self, text, rule):
        if (text, rule) not in known:
            known[text, rule] = parse_rule(self, text, rule)
        return copy.deepcopy(known[text, rule])

    return parsed


def _choose(create_defaults_list):
    """Remember which files the options of the groups lead to; values of keys choose none."""
    known = {}

    def chosen(repo, config_name, overrides_list, prepend_hydra, skip_missing):
        arguments = (repo, config_name, overrides_list, prepend_hydra, skip_missing)
        if not all(map(_is_unchanging, repo.get_sources())):
            return create_defaults_list(*arguments)
        typed = [o for o in overrides_list if not o.is_sweep_override()]
        words = [o.input_line for o in typed if repo.group_exists(o.key_or_group)]
        key = (config_name, prepend_hydra, skip_missing, os.environ.get("DDPM_TEAM"), *words)
        if key not in known:
            known[key] = create_defaults_list(*arguments)
        found = known[key]
        values = Overrides(repo=repo, overrides_list=overrides_list).config_overrides
        files = list(map(copy.copy, found.defaults))
        return DefaultsList(files, found.defaults_tree, values, found.overrides)

    return chosen


def _merge(merge):
    """Remember what comes of files that do not change; the command line is applied later."""
    known = {}

    def merged(self, defaults, repo):
        files = [d.config_path for d in defaults]
        at = [(d.package, d.parent, d.is_self, d.primary, d.override_key) for d in defaults]
        if not all(map(_is_unchanging, repo.get_sources())):
            return merge(self, defaults, _Copies(repo))
        launcher = ConfigStore.instance().load(f"{LAUNCHER}.yaml").node
        key = (*files, *at, str(launcher))
        if key not in known:
            known[key] = merge(self, defaults, _Copies(repo))
        return copy.deepcopy(known[key])

    return merged


class _Copies:
    """A repository of copies, for Hydra merges into what it has loaded."""

    def __init__(self, repository):
        self._repository = repository

    def __getattr__(self, name):
        return getattr(self._repository, name)

    def load_config(self, config_path):
        return copy.deepcopy(self._repository.load_config(config_path))


def _is_unchanging(source):
    return source.scheme() == "structured" or f"{source.scheme()}://{source.path}" in UNCHANGING


@functools.cache
def curve_of_a_loss() -> bytes:
    """A picture for tests that do not look at it: drawing one takes longer than a tiny run."""
    from ddpm.trackers.local import loss_curve

    return loss_curve([1, 2], [1.0, 0.9])
