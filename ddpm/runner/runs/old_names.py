"""Names of earlier versions in stored configurations, and the names that stand for them today.

An entry may go once no run of that version is worth continuing: it is what makes old run folders,
checkpoints, exports and sweeps readable. docs/upgrading.md tells users about them.
"""

from typing import Any

# `_target_` names: old -> new.
MOVED = {"ddpm.hardware.fabric": "ddpm.runner.distributed.fabric.fabric"}


def renamed(node: Any) -> Any:
    """A copy of a configuration, or of a part of it, with today's names.

    Args:
        node: plain data that passed `stored_config.check_shape`.
    """
    if isinstance(node, dict):
        node = {key: renamed(value) for key, value in node.items()}
        if isinstance(node.get("_target_"), str):
            node["_target_"] = MOVED.get(node["_target_"], node["_target_"])
        return node
    return [renamed(value) for value in node] if isinstance(node, list) else node
