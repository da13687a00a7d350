"""What Hydra composed, as plain dictionaries and with the types that it has at run time."""

from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


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
