"""From a configuration node to an object: the one gate through which names become code.

Only what a file under conf/ names may be built. The names in a checkpoint, in a run folder or on
the command line are somebody's data: each is looked up here before anything is imported.
"""

import functools
import inspect
import re
from typing import Any

import hydra.errors
import hydra.utils
from omegaconf import DictConfig, OmegaConf

from ddpm import catalog
from ddpm.errors import InputError, causes, nearest

_DIRECTIVES = {"_target_", "_partial_"}


def check_targets(node: Any, key: str = "") -> None:
    """Refuse a configuration, as plain data, that names anything else.

    Raises:
        InputError: a `_target_` is not one of conf/, or another directive of Hydra's is used.
    """
    if isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, f"{key}[{index}]")
    if not isinstance(node, dict):
        return
    target = node.get("_target_")
    if "_target_" in node and (not isinstance(target, str) or target not in catalog.targets()):
        hint = nearest(str(target), catalog.targets())
        raise InputError(
            f"{_user_key(key)}._target_={target}: only what a file under conf/ names can be "
            f"built.{hint}"
        )
    for name, value in node.items():
        if isinstance(name, str) and re.fullmatch(r"_\w+_", name) and name not in _DIRECTIVES:
            raise InputError(f"{_user_key(key)}.{name}: not allowed in a configuration.")
        check_targets(value, f"{key}.{name}" if key else str(name))


def build(node: dict[str, Any] | DictConfig, key: str = "") -> Any:
    """Make what a node describes: its `_target_` called with its other entries, inner nodes first.

    `_partial_: true` gives a `functools.partial` to be called later with what only Python knows.

    Raises:
        InputError: a name is not allowed, or an argument is missing, unknown or refused.
    """
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    check_targets(plain, key)
    _check_arguments(plain, key)
    try:
        made = hydra.utils.instantiate(OmegaConf.create(plain), _convert_="all")
    except hydra.errors.InstantiationException as error:
        raise _explain(error, key) from None
    return _unwrap(made)


def _check_arguments(node: Any, key: str) -> None:
    """Hold the entries of each node against the parameters of its target."""
    if not isinstance(node, dict):
        return
    for name, value in node.items():
        _check_arguments(value, f"{key}.{name}")
    if "_target_" not in node:
        return
    parameters = _parameters(hydra.utils.get_object(node["_target_"]))
    given = set(node) - _DIRECTIVES
    where = _user_key(key)
    for name in sorted(given - set(parameters)):
        full = [f"{where}.{parameter}" for parameter in parameters]
        raise InputError(f"{where}.{name}: there is no such key.{nearest(f'{where}.{name}', full)}")
    needed = {n for n, p in parameters.items() if p.default is p.empty}
    if not node.get("_partial_") and (missing := sorted(needed - given)):
        raise InputError(f"{where}.{missing[0]}: must be given.")


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    """What a function or class takes; behind **arguments of a class stand those of its bases."""
    found: dict[str, inspect.Parameter] = {}
    for owner in target.__mro__ if inspect.isclass(target) else [target]:
        parameters = inspect.signature(owner).parameters
        found = dict(parameters) | found
        rest = [n for n, p in parameters.items() if p.kind is p.VAR_KEYWORD]
        if not rest:
            break
        del found[rest[0]]
    return found


def _explain(error: Exception, key: str) -> Exception:
    """The InputError inside Hydra's report of it, or what a constructor said, with its key."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, InputError):
            return InputError(str(cause))
    full_key = re.search(r"full_key: (\S+)", str(error))
    where = ".".join(part for part in (key, full_key[1] if full_key else "") if part)
    return InputError(f"{_user_key(where)}: {chain[-1]}")


def _unwrap(made: Any) -> Any:
    """Plain partials for Hydra's, each call of which would look its target up again (90 us)."""
    if isinstance(made, functools.partial):
        return functools.partial(made.func, *made.args, **_unwrap(made.keywords))
    if isinstance(made, dict):
        return {name: _unwrap(value) for name, value in made.items()}
    return made


def _user_key(key: str) -> str:
    """The key as a user writes it: the job's parts stand outside the job."""
    name = key.removeprefix("job.")
    return name if name.split(".")[0] in {*catalog.groups(), "diffusion"} else key
