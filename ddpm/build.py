"""From a configuration node to an object: the one gate through which names become code.

Only what a file under conf/ names may be built. The names in a checkpoint, in a run folder or on
the command line are somebody's data: each is looked up here before anything is imported.
"""

import functools
import inspect
import re
from pathlib import Path
from typing import Any

import hydra.errors
import hydra.utils
from omegaconf import DictConfig, OmegaConf

from ddpm.errors import InputError, causes, nearest

# In a checkout conf/ stands beside the package, in an installed wheel inside it.
_PACKAGE = Path(__file__).parent
CONF = next(p for p in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if p.is_dir())
_TARGET = re.compile(r"^\s*_target_:\s*([\w.]+)\s*(?:#.*)?$", re.MULTILINE)
_DIRECTIVES = {"_target_", "_partial_"}


@functools.cache
def allowed_targets() -> frozenset[str]:
    """Every `_target_` that a file under conf/ names."""
    texts = (path.read_text() for path in sorted(CONF.rglob("*.yaml")))
    return frozenset(name for text in texts for name in _TARGET.findall(text))


def check_targets(node: Any, key: str = "") -> None:
    """Refuse a configuration, as plain data, that names anything else.

    Raises:
        InputError: a `_target_` is not one of conf/, or another directive of Hydra's is used.
    """
    if isinstance(node, dict):
        target = node.get("_target_")
        if "_target_" in node and (not isinstance(target, str) or target not in allowed_targets()):
            hint = nearest(str(target), allowed_targets())
            raise InputError(
                f"{_user_key(key)}._target_={target}: only what a file under conf/ names can be "
                f"built.{hint}"
            )
        for name, value in node.items():
            if isinstance(name, str) and re.fullmatch(r"_\w+_", name) and name not in _DIRECTIVES:
                raise InputError(f"{key}.{name}: not allowed in a configuration.")
            check_targets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, f"{key}[{index}]")


def build(node: dict[str, Any] | DictConfig, key: str = "") -> Any:
    """Make what a node describes: its `_target_` called with its other entries, inner nodes first.

    `_partial_: true` gives a `functools.partial` to be called later with what only Python knows.

    Raises:
        InputError: a name is not allowed, or an argument is missing, unknown or refused.
    """
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    check_targets(plain, key)
    try:
        made = hydra.utils.instantiate(OmegaConf.create(plain), _convert_="all")
    except hydra.errors.InstantiationException as error:
        raise _explain(error) from None
    return _unwrap(made, key)


def _explain(error: Exception) -> Exception:
    """The InputError inside Hydra's report of it; a wrong argument as one; else Hydra's own."""
    for cause in causes(error):
        if isinstance(cause, InputError):
            return InputError(str(cause))
        if isinstance(cause, TypeError) and "argument" in str(cause):
            key = re.search(r"full_key: (\S+)", str(error))
            return InputError(f"{_user_key(key[1]) if key else 'configuration'}: {cause}")
    return error


def _unwrap(made: Any, key: str) -> Any:
    """Plain partials for Hydra's, each call of which would look its target up again (90 us).

    Raises:
        InputError: a partial holds an argument that its function does not take.
    """
    if isinstance(made, functools.partial):
        keywords = _unwrap(made.keywords, key)
        try:
            inspect.signature(made.func).bind_partial(*made.args, **keywords)
        except TypeError as error:
            raise InputError(f"{_user_key(key)}: {error}.") from None
        return functools.partial(made.func, *made.args, **keywords)
    if isinstance(made, dict):
        return {name: _unwrap(value, f"{key}.{name}") for name, value in made.items()}
    return made


def _user_key(key: str) -> str:
    """The key as a user writes it: the job's parts stand outside the job."""
    return key.removeprefix("job.")
