"""The configuration that a run left behind, in its folder or in a checkpoint: somebody's data."""

import re
from typing import Any

from ddpm.errors import InputError, shown
from ddpm.untrusted import Refused, check_plain

# Words that become parts of paths, of log lines and of Hydra's overrides.
_WORD = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
VERSION = 1  # of what a run's configuration means; raise it when an older program would misread it
_PARTS = (
    *("model", "data", "schedule", "objective", "weighting", "diffusion", "sampler", "guidance"),
    *("job", "optimizer", "hardware", "tracker"),
)


def check_shape(config: Any) -> None:
    """See that a stored configuration looks like one, and can be handled without surprise.

    Raises:
        Refused: it does not; says why in one line.
    """
    check_plain(config)
    if not isinstance(config, dict) or not isinstance(config.get("choices"), dict):
        raise Refused("it holds no configuration of this program")
    for group, choice in config["choices"].items():
        options = choice if isinstance(choice, list) else [choice]
        if not all(x is None or (isinstance(x, str) and _WORD.fullmatch(x)) for x in options):
            raise Refused(f"choices.{shown(group)} is {shown(choice)}, which names no option")
    for part in _PARTS:
        if not isinstance(config.get(part, {}), dict):
            raise Refused(f"its {part} is {shown(config[part])}")
    if missing := [part for part in ("model", "data") if part not in config]:
        raise Refused(f"it lacks {missing[0]}")
    if not is_word(config.get("run_id", "x")):
        raise Refused(f"run_id is {shown(config['run_id'])}")


def is_word(value: Any) -> bool:
    """Whether a value may become the name of something."""
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def check_version(config: dict[str, Any], source: str) -> None:
    """See that this program knows what a stored configuration means; without a version it is 1.

    Args:
        source: what the message begins with, as `resume=<folder>`.

    Raises:
        InputError: it is of a newer program, or its version is no number.
    """
    version = config.get("version", 1)
    if type(version) is not int or version < 1:
        raise InputError(f"{source}: its version is {shown(version)}, not a whole number from 1.")
    if version > VERSION:
        raise InputError(
            f"{source}: written by a newer version of this program ({version}, here {VERSION}): "
            "update it."
        )
