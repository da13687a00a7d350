"""Build objects from configuration nodes. This is the only module that turns names into code.

Only targets that a file under conf/ names, or an option in the user's own folder, may be built.
Names in a checkpoint, in a run folder or on the command line are untrusted: each must be in this
list before anything is imported, and the imported object must be the one named before it is called.
"""

import contextlib
import functools
import importlib.util
import inspect
import logging
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra.errors
import hydra.utils
from omegaconf import DictConfig, OmegaConf

from ddpm.errors import InputError, causes, nearest, one_line, shown
from ddpm.runner import own_folder
from ddpm.runner.config import catalog
from ddpm.runner.safe_io.plain import Refused, check_plain
from ddpm.runner.terminal import shell

_DIRECTIVES = {"_target_", "_partial_"}
# Of a network; files under conf/ take them from the data, whatever the defaults in Python.
_FROM_THE_DATA = {"channels", "out_channels", "image_size"}


def check_targets(node: Any, key: str = "") -> None:
    """Check that a configuration, as plain data, names only targets that may be built.

    Raises:
        InputError: it has another `_target_`, another directive of Hydra, or a `${` reference in a
            node to build.
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
        # References are resolved by now; Hydra would evaluate one that an untrusted file holds.
        raise InputError(f"{_user_key(key)}={shown(node)}: must be a value, not a reference.")


def _check_directives(node: dict[Any, Any], key: str) -> None:
    """Allow two of Hydra's directives: a known `_target_`, and a boolean `_partial_`."""
    where = _user_key(key)
    if "_target_" in node:
        target = node["_target_"]
        if not isinstance(target, str) or target not in catalog.targets():
            folder = own_folder.current()
            own = shell.relative(folder) if folder else None
            places = f", or a part in {own}/*.py that an option in {own}/ names" if own else ""
            package = str(target).partition(".")[0] + "."
            similar = [name for name in catalog.targets() if name.startswith(package)]
            hint = nearest(str(target), similar)
            if not similar and not own:
                hint = " A part of your own needs --config-dir <folder>, as for the training."
            raise InputError(
                f"{where}._target_={shown(target)}: must be a target that a file under conf/ names"
                f"{places}.{hint}"
            )
    for name in node:
        if isinstance(name, str) and re.fullmatch(r"_\w+_", name) and name not in _DIRECTIVES:
            raise InputError(f"{where}.{shown(name)}: not allowed in a configuration.")
    if not isinstance(node.get("_partial_", False), bool):
        raise InputError(f"{where}._partial_={shown(node['_partial_'])}: must be true or false.")


def build(node: dict[str, Any] | DictConfig, key: str = "") -> Any:
    """Build the object that a node describes: call its `_target_` with its other entries, inner
    nodes first. `_partial_: true` gives a `functools.partial`, for arguments known only later.

    Raises:
        InputError: a name is not allowed, or an argument is missing, unknown or refused.
    """
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    check_targets(plain, key)
    _check_arguments(plain, key)
    try:
        built = hydra.utils.instantiate(OmegaConf.create(plain), _convert_="all")
    except hydra.errors.InstantiationException as error:
        raise _explain(error, key) from None
    return _unwrap(built)


def _check_arguments(node: Any, key: str) -> None:
    """Check the entries of each node against the parameters of its target."""
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
    arguments = set(node) - _DIRECTIVES
    for name in sorted(arguments - set(parameters), key=str):
        known = [f"{where}.{parameter}" for parameter in parameters]
        unknown = f"{where}.{shown(name)}"
        raise InputError(f"{unknown}: no such key.{nearest(unknown, known)}")
    required = {n for n, p in parameters.items() if p.default is p.empty}
    required |= _FROM_THE_DATA & set(parameters) if where == "model" else set()
    if not node.get("_partial_") and (missing := sorted(required - arguments)):
        raise InputError(f"{where}.{missing[0]}: must be set.")


def _find(target: str, where: str) -> Any:
    """Import the class or function of this name.

    Raises:
        InputError: it is defined in another package than its name says. Imported modules are
            attributes, too: `ddpm.runner.config.build.hydra` is a package of Hydra. Or it is of
            the user's own folder and cannot be imported.
    """
    with _explained(target):
        imported = hydra.utils.get_object(target)
    package, name = target.split(".")[0], target.split(".")[-1]
    if (
        not (inspect.isclass(imported) or inspect.isfunction(imported))
        or str(imported.__module__).split(".")[0] != package
        or imported.__qualname__ != name
    ):
        raise InputError(
            f"{where}._target_={shown(target)}: must be a class or function defined in {package}."
        )
    return imported


@contextlib.contextmanager
def _explained(target: str) -> Iterator[None]:
    """While open, an error from importing a part of the user's is one of the user.

    Raises:
        InputError: names the user's file; also if another module of its name is found first.
    """
    named_in = catalog.own_targets().get(target)
    if named_in is None:
        yield
        return
    own_folder.make_importable()
    _check_found(target.split(".")[0])
    log = logging.getLogger("hydra.utils")
    log.addFilter(_nothing)  # Hydra would print the same first
    try:
        yield
    except (ImportError, ValueError) as error:
        *_, cause = causes(error)
        reason = f"{type(cause).__name__}: {one_line(cause)}"
        place = _line_of(cause) or named_in
        raise InputError(f"{place}: {shown(target)} cannot be imported ({reason}).") from error
    finally:
        log.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    """A filter that lets no record pass."""
    return False


def _check_found(name: str) -> None:
    """Check that Python finds a module in the user's own folder, if there is one of this name.

    Raises:
        InputError: another one comes first.
    """
    folder = own_folder.current()
    assert folder is not None
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # not a name, or of a module that comes from no file
        return
    found = spec.origin if spec is not None and spec.origin else ""
    for file in filter(Path.is_file, (folder / f"{name}.py", folder / name / "__init__.py")):
        if Path(found).resolve() != file.resolve():
            raise InputError(
                f"{file}: Python finds another module of this name ({found}); rename it."
            )


def _line_of(error: BaseException) -> str | None:
    """The last line in the user's own folder that led to an error: `file:line`."""
    folder = own_folder.current()
    assert folder is not None
    frames = traceback.extract_tb(error.__traceback__)
    lines = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(error, SyntaxError):
        lines.append((error.filename or "", error.lineno))
    own = [f"{file}:{line}" for file, line in lines if Path(file).is_relative_to(folder)]
    return own[-1] if own else None


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a function or class; `**arguments` of a class are those of its bases."""
    parameters: dict[str, inspect.Parameter] = {}
    for owner in target.__mro__ if inspect.isclass(target) else [target]:
        own = inspect.signature(owner).parameters
        parameters = dict(own) | parameters
        var_keyword = [n for n, p in own.items() if p.kind is p.VAR_KEYWORD]
        if not var_keyword:
            break
        del parameters[var_keyword[0]]
    return parameters


def _explain(error: Exception, key: str) -> Exception:
    """The InputError that Hydra wrapped, or the message of a constructor with the node's key."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, InputError):
            return InputError("\n".join(shown(line, 1000) for line in str(cause).splitlines()))
    full_key = re.search(r"full_key: (\S+)", str(error))
    where = ".".join(part for part in (key, full_key[1] if full_key else "") if part)
    return InputError(f"{_user_key(where)}: {shown(chain[-1], 400)}")


def _unwrap(built: Any) -> Any:
    """Replace Hydra's partials by plain ones: Hydra's look up their target at each call (90 us)."""
    if isinstance(built, functools.partial):
        return functools.partial(built.func, *built.args, **_unwrap(built.keywords))
    if isinstance(built, dict):
        return {name: _unwrap(value) for name, value in built.items()}
    return built


def _user_key(key: str) -> str:
    """The key as a user writes it: the parts of a job are top-level groups."""
    name = key.removeprefix("job.")
    return shown(name if name.split(".")[0] in {*catalog.groups(), "diffusion"} else key, 200)
