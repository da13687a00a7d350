"""From a configuration node to an object: the one gate through which names become code.

Only what a file under conf/ names may be built. The names in a checkpoint, in a run folder or on
the command line are somebody's data: each is looked up here before anything is imported, and what
is found under it must be what the name says before anything is called.
"""

import functools
import inspect
import re
from typing import Any

import hydra.errors
import hydra.utils
from omegaconf import DictConfig, OmegaConf

from ddpm.errors import InputError, causes, nearest, shown
from ddpm.runner.config import catalog
from ddpm.runner.safe_io.plain import Refused, check_plain

_DIRECTIVES = {"_target_", "_partial_"}


def check_targets(node: Any, key: str = "") -> None:
    """Refuse a configuration, as plain data, that names anything else.

    Raises:
        InputError: a `_target_` is not one of conf/, another directive of Hydra's is used, or what
            is to be built asks for other values by `${`.
    """
    try:
        check_plain(node)
    except Refused as reason:
        raise InputError(f"{_user_key(key) or 'configuration'}: {reason}.") from None
    _check_names(node, key, building=False)


def _check_names(node: Any, key: str, *, building: bool) -> None:
    if isinstance(node, list | tuple):
        for index, value in enumerate(node):
            _check_names(value, f"{key}[{index}]", building=building)
    elif isinstance(node, dict):
        building = building or "_target_" in node
        _check_directives(node, key)
        for name, value in node.items():
            _check_names(value, f"{key}.{name}" if key else str(name), building=building)
    elif building and isinstance(node, str) and ("${" in node or node == "???"):
        # All there is to look up has been: what is left would be read by whoever wrote the file.
        raise InputError(f"{_user_key(key)}={shown(node)}: must be a value, not a reference.")


def _check_directives(node: dict[Any, Any], key: str) -> None:
    """Of what Hydra obeys, only a name of conf/ and a `_partial_` of true or false may stand."""
    where = _user_key(key)
    if "_target_" in node:
        target = node["_target_"]
        if not isinstance(target, str) or target not in catalog.targets():
            hint = nearest(str(target), catalog.targets())
            raise InputError(
                f"{where}._target_={shown(target)}: only what a file under conf/ names can be "
                f"built.{hint}"
            )
    for name in node:
        if isinstance(name, str) and re.fullmatch(r"_\w+_", name) and name not in _DIRECTIVES:
            raise InputError(f"{where}.{shown(name)}: not allowed in a configuration.")
    if not isinstance(node.get("_partial_", False), bool):
        raise InputError(f"{where}._partial_={shown(node['_partial_'])}: must be true or false.")


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
    """Find what each node names, and hold the entries against its parameters."""
    if isinstance(node, list):
        for index, value in enumerate(node):
            _check_arguments(value, f"{key}[{index}]")
    if not isinstance(node, dict):
        return
    for name, value in node.items():
        _check_arguments(value, f"{key}.{name}")
    if "_target_" not in node:
        return
    where = _user_key(key)
    parameters = _parameters(_find(node["_target_"], where))
    given = set(node) - _DIRECTIVES
    for name in sorted(given - set(parameters), key=str):
        full = [f"{where}.{parameter}" for parameter in parameters]
        written = f"{where}.{shown(name)}"
        raise InputError(f"{written}: there is no such key.{nearest(written, full)}")
    needed = {n for n, p in parameters.items() if p.default is p.empty}
    if not node.get("_partial_") and (missing := sorted(needed - given)):
        raise InputError(f"{where}.{missing[0]}: must be given.")


def _find(target: str, where: str) -> Any:
    """The class or function of this name, if it is one of the package that the name begins with.

    Modules are also reachable through what they import: `ddpm.runner.config.build.hydra` begins
    like a name of ours, and is Hydra's.

    Raises:
        InputError: it is not.
    """
    found = hydra.utils.get_object(target)
    package, name = target.split(".")[0], target.split(".")[-1]
    if (
        not (inspect.isclass(found) or inspect.isfunction(found))
        or str(found.__module__).split(".")[0] != package
        or found.__qualname__ != name
    ):
        raise InputError(f"{where}._target_={shown(target)}: stands for something else there.")
    return found


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
            return InputError("\n".join(shown(line, 1000) for line in str(cause).splitlines()))
    full_key = re.search(r"full_key: (\S+)", str(error))
    where = ".".join(part for part in (key, full_key[1] if full_key else "") if part)
    return InputError(f"{_user_key(where)}: {shown(chain[-1], 400)}")


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
    return shown(name if name.split(".")[0] in {*catalog.groups(), "diffusion"} else key, 200)
