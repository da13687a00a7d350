"""What Hydra says of a mistake on the command line, in words that help to mend it."""

import re
import sys
from collections.abc import Iterator
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from ddpm.build import CONF
from ddpm.errors import InputError, causes, nearest


def explain(error: BaseException) -> str | None:
    """The message for a mistake of the user; None for an error of the program."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, InputError):
            return str(cause)
    text = "\n".join(str(cause) for cause in chain)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read. Write key=value without blanks, as in "
            "job.max_steps=500, and quote what the shell would touch, as in "
            "'tracker=[wandb,tensorboard]'."
        )
    if "Ambiguous value" in text:
        return "Several values are a sweep: add -m to run them one after the other."
    if isinstance(error, MissingConfigException):
        return _no_such_option(error, text)
    if key := re.search(r"Key '[^']*' is not in struct\s+full_key: (\S+)", text):
        return no_such_key(key[1])
    if "Config group override must be a string or a list" in text:
        return f"{_scalar_group()}: a group takes the name of one of its options, not a number."
    if name := re.search(r"Environment variable '([^']+)' not found", text):
        key = re.search(r"full_key: (\S+)", text)
        return f"{key[1] if key else 'a key'}: the environment variable {name[1]} is not set."
    if isinstance(error, HydraException | OmegaConfBaseException):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return "\n".join(list(dict.fromkeys(lines))[:4])
    return None


def groups() -> dict[str, list[str]]:
    """The groups of conf/ and their options."""
    folders = sorted(path for path in CONF.iterdir() if path.is_dir())
    return {path.name: sorted(p.stem for p in path.glob("*.yaml")) for path in folders}


def no_such_key(key: str) -> str:
    """That a key does not exist, and which one may have been meant."""
    keys = _keys()
    owners = sorted({f"{g}={o}" for k, (g, o) in keys if k == key and o is not None})
    if owners:
        return f"{key}: not a key of this run. It belongs to {' and '.join(owners[:3])}."
    known = {k for k, _ in keys} | set(groups())
    hint = nearest(key, known)
    if not hint and "." in key:  # the right name in the wrong place
        last = key.rsplit(".", 1)[1]
        same = sorted(k for k in known if k.rsplit(".", 1)[-1] == last)
        hint = f" Did you mean '{same[0]}'?" if same else ""
    return f"{key}: there is no such key.{hint} `python run.py --cfg job` prints them all."


def _no_such_option(error: MissingConfigException, text: str) -> str:
    name = error.missing_cfg_file or ""
    group, _, option = str(name).rpartition("/")
    options = groups().get(group)
    if options is None:
        return next(line for line in text.splitlines() if line.strip())
    return (
        f"{group}={option}: there is no such option.{nearest(option, options)} "
        f"{group} can be {', '.join(options)}."
    )


def _scalar_group() -> str:
    names = groups()
    given = (word for word in sys.argv[1:] if word.split("=")[0] in names)
    return next((word for word in given if not word.split("=", 1)[-1].isidentifier()), "a group")


def _keys() -> list[tuple[str, tuple[str, str | None]]]:
    """Every key that a file under conf/ defines, with its group and option."""
    found: list[tuple[str, tuple[str, str | None]]] = []
    for path in sorted(CONF.rglob("*.yaml")):
        group = path.parent.name if path.parent != CONF else ""
        if group in ("experiment", "budget", "size") or "hydra" in path.parts[len(CONF.parts) :]:
            continue
        text = path.read_text()
        package = re.match(r"#\s*@package\s+(\S+)", text)
        prefix = package[1] if package else group
        node: Any = yaml.safe_load(text) or {}
        owner = (group, path.stem if group else None)
        prefix = "" if prefix == "_global_" else prefix
        found += [(key, owner) for key in _flatten(node, prefix)]
    return found


def _flatten(node: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in node.items():
        if name in ("defaults", "hydra", "_target_", "_partial_"):
            continue
        key = f"{prefix}.{name}" if prefix else str(name)
        yield key
        if isinstance(value, dict):
            yield from _flatten(value, key)
