"""The configuration that Hydra composed, as plain dictionaries and with its run-time types."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf

from ddpm.runner.terminal import shell


def compose(words: list[str], folder: Path, own: Path | None = None) -> DictConfig:
    """The configuration that Hydra composes from the files in `folder` and these overrides, with
    its own as the node `hydra`. The process may use Hydra for something else.

    Args:
        own: the user's own folder, which is searched after `folder`.
    """
    if own is not None:
        words = [*words, f"hydra.searchpath=[{shell.quoted(f'file://{own}')}]"]
    with _own_hydra(), hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return hydra.compose("config", words, return_hydra_config=True)


@contextlib.contextmanager
def current(composed: DictConfig) -> Iterator[None]:
    """While open, `hydra_config` is that of a composed configuration."""
    with _own_hydra():
        HydraConfig.instance().set_config(composed)
        yield


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """While open, Hydra is as in a new process; then as it was before."""
    composing, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    version: Any = VersionBase.instance().getbase()
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = composing, config
        VersionBase.instance().setbase(version)


def to_dict(node: Any, *, resolve: bool) -> dict[str, Any]:
    """A configuration as plain data.

    Args:
        resolve: replace each `${...}` by its value, rather than keeping the text.
    """
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=resolve))


def hydra_config() -> DictConfig:
    """Hydra's own configuration of the current run or job."""
    return cast(DictConfig, HydraConfig.get())


def typed_words() -> list[str]:
    """The overrides of the current run as texts. Reading them one by one would resolve them."""
    return to_dict(hydra_config(), resolve=False)["overrides"]["task"]
