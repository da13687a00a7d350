"""The groups, options and keys that the files under conf/ define, and the targets that may be
built: those of conf/ and of the user's own folder."""

import codecs
import contextlib
import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ddpm.errors import InputError, one_line
from ddpm.runner import own_folder, roles
from ddpm.runner.safe_io import listing

# conf/ is beside the package in a checkout, inside it in an installed wheel.
_PACKAGE = Path(__file__).parents[2]
CONF = next(p for p in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if p.is_dir())
# The default folder of data sets: data/ in the checkout, or in the current folder if installed.
DATA = CONF.parent / "data" if CONF.parent != _PACKAGE else Path("data")

# Groups that set keys of other groups and have none of their own.
_WITHOUT_KEYS = (*roles.PRESETS, "team")
# Groups whose options add up in a list, 'experiment=[laptop,debug]', and seldom replace each other.
ADDED_UP = ("experiment", "metric")


class Key(NamedTuple):
    """A key as a user writes it, with its default, in one option of a group."""

    name: str
    default: Any
    group: str | None
    option: str | None


@functools.cache
def groups() -> dict[str, list[str]]:
    """The groups and their options."""
    return {folder.name: [path.stem for path in yaml_files(folder)] for folder in _group_folders()}


def _group_folders() -> list[Path]:
    return [path for path in listing.paths(CONF) if path.is_dir() and path.name != "hydra"]


def yaml_files(folder: Path) -> list[Path]:
    """The YAML files in a folder, sorted, without hidden ones: `._x.yaml` is a macOS attribute."""
    return [path for path in listing.paths(folder, "*.yaml") if not path.name.startswith(".")]


@functools.cache
def keys() -> list[Key]:
    """Every key that a file defines."""
    defined = [Key(n, v, None, None) for n, v in flatten(read(CONF / "config.yaml"))]
    for group, options in groups().items():
        for option in options if group not in _WITHOUT_KEYS else ():
            defined += keys_in(CONF / group / f"{option}.yaml")
    return defined


def keys_in(path: Path) -> list[Key]:
    """The keys that an option sets.

    Raises:
        InputError: the file cannot be read.
    """
    group, option = path.parent.name, path.stem
    values = body(path)
    package = re.search(r"^#\s*@package\s+(\S+)", path.read_text(), re.MULTILINE)
    prefix = package[1] if package else group
    pairs = flatten(values, "" if prefix == "_global_" else prefix)
    return [Key(name, value, group, option) for name, value in pairs]


def targets() -> frozenset[str]:
    """Every `_target_` that may be built: those of conf/, and those of the user's own folder."""
    return _targets_of_conf() | own_targets().keys()


@functools.cache
def _targets_of_conf() -> frozenset[str]:
    """Every `_target_` that a file names, without those of Hydra's plugins."""
    files = [path for folder in (CONF, *_group_folders()) for path in yaml_files(folder)]
    texts = (path.read_text(encoding="utf-8") for path in files)
    pattern = re.compile(r"^\s*_target_:\s*([\w.]+)\s*(?:#.*)?$", re.MULTILINE)
    return frozenset(name for text in texts for name in pattern.findall(text))


class _Own(NamedTuple):
    """The keys that the options in the user's own folder define, and the targets that they name."""

    keys: list[Key]
    targets: dict[str, Path]  # with the file of each


def own_targets() -> dict[str, Path]:
    """Every `_target_` that an option in the user's own folder names and may name, with its file:
    parts in modules of this folder, and optimizers of PyTorch. So a file of others that comes to
    lie among the options, such as a run folder called `model`, can call no other code.
    """
    named = _own().targets.items()
    return {name: path for name, path in named if _may_name(name)}


def _may_name(target: str) -> bool:
    module = target.partition(".")[0]
    own = module not in groups() and own_folder.holds(module)
    return own or re.fullmatch(r"torch\.optim\.[A-Z]\w*", target) is not None


def options(group: str) -> list[str]:
    """The options of a group, with those in the user's own folder."""
    return [*groups()[group], *(path.stem for path in _own_files(group))]


def _own_files(group: str) -> list[Path]:
    folder = own_folder.current()
    files = [] if folder is None else yaml_files(folder / group)
    # Hydra finds an option of conf/ first.
    return [path for path in files if path.is_file() and path.stem not in groups()[group]]


def _own() -> _Own:
    files = [path for group in groups() for path in _own_files(group)]
    stats = [path.stat() for path in files]
    return _read_own(
        tuple((p, s.st_mtime_ns, s.st_size) for p, s in zip(files, stats, strict=True))
    )


@functools.lru_cache(maxsize=4)
def _read_own(files: tuple[tuple[Path, int, int], ...]) -> _Own:
    """Read options with their times and sizes: they may change while a notebook runs."""
    own = _Own([], {})
    for path, _, _ in files:
        with contextlib.suppress(InputError, OSError):  # reported once the file is chosen
            own.targets.update(dict.fromkeys(_targets_in(read(path)), path))
            own.keys.extend(keys_in(path) if path.parent.name not in _WITHOUT_KEYS else [])
    return own


def _targets_in(node: Any) -> Iterator[str]:
    """Every `_target_` in a file's content."""
    if isinstance(node, dict):
        if isinstance(target := node.get("_target_"), str):
            yield target
        node = list(node.values())
    for inner in node if isinstance(node, list) else []:
        yield from _targets_in(inner)


def defaults(choices: dict[str, Any]) -> dict[str, Any]:
    """The keys of a run with these choices, and their defaults."""
    return {
        key.name: key.default
        for key in [*keys(), *_own().keys]
        if key.group is None or key.option in as_list(choices.get(key.group))
    }


def known(choices: dict[str, Any]) -> set[str]:
    """The names of a run's keys, with the groups. An option that the user defined, in a folder
    named by `--config-dir`, may have any key of its group.
    """
    custom = {group for group, options in groups().items() if choices.get(group) not in options}
    names = {key.name for key in [*keys(), *_own().keys] if key.group in custom}
    parts = {group for group in groups() if group not in _WITHOUT_KEYS}
    return names | parts | set(defaults(choices))


def kind_of(job: str) -> str | None:
    """The kind of a job of conf/, as its file states it; None for others."""
    if job not in groups()["job"]:
        return None
    kind = read(CONF / "job" / f"{job}.yaml").get("kind")
    return kind if isinstance(kind, str) else None


def features_of(job: str, data: str) -> str:
    """The default features of samples of a data set: those of its name, if there are any. Jobs that
    score none have none: there is no option `none`."""
    if job not in ("evaluate", "train"):
        return "none"
    return data if data in options("features") else "efficientnet"


def as_list(choice: Any) -> list[Any]:
    """The options of a choice; groups such as tracker accept several."""
    return list(choice) if isinstance(choice, list | tuple) else [choice]


def chosen_files(folders: Iterable[Path], choices: dict[str, Any]) -> list[Path]:
    """The files of the chosen options, by group, in these folders."""
    options = [(group, name) for group, c in choices.items() for name in as_list(c) if name]
    paths = [folder / group / f"{name}.yaml" for folder in folders for group, name in options]
    return list(filter(os.path.isfile, paths))  # `Path.is_file` raises for names that are too long


def read(path: Path) -> dict[str, Any]:
    """The content of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(unreadable(error, path)) from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold keys and values.")
    return values


def body(path: Path, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of an option, merged over the options of its group that its `defaults` include.

    Raises:
        InputError: a file cannot be read, or includes itself.
    """
    if path in within:
        raise InputError(f"{path}: its `defaults` include itself.")
    own = read(path)
    included: dict[str, Any] = {}
    for name in own.get("defaults") or []:
        folders = (path.parent, CONF / path.parent.name)
        files = (folder / f"{name}.yaml" for folder in folders)
        if isinstance(name, str) and (file := next(filter(Path.is_file, files), None)):
            included = _over(included, body(file, (*within, path)))
    return _over(included, own)


def node(group: str, option: str) -> dict[str, Any]:
    """An option with its own values, as `build` takes it.

    Raises:
        InputError: the file cannot be read.
    """
    values = body(CONF / group / f"{option}.yaml")
    return {key: _number(value) for key, value in values.items() if key != "defaults"}


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries merged; the values of the second win."""
    both = {
        key: _over(below[key], above[key])
        for key in below.keys() & above.keys()
        if isinstance(below[key], dict) and isinstance(above[key], dict)
    }
    return below | above | both


def misread(path: Path) -> str | None:
    """A line on why Hydra would misread a file; None if it reads the file as written.

    Hydra reads UTF-8 without a byte order mark, and `# @package` in the first line only.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"{path}: is in UTF-16; save it as UTF-8."
    if data.startswith(codecs.BOM_UTF8):
        return f"{path}: starts with a byte order mark; save it as UTF-8 without one."
    header = True
    for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
        if not header and re.match(r"#\s*@package\b", line):
            return f"{path}:{number}: `{line.strip()}` has no effect; move it to the first line."
        header = header and (not line.strip() or re.match(r"\s*#\s*@", line) is not None)
    return None


def unreadable(error: yaml.YAMLError | UnicodeDecodeError, path: Path | str) -> str:
    """Why a YAML file cannot be read, in one line: `file:line:column: reason`."""
    if isinstance(error, UnicodeDecodeError):
        return f"{path}: not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return f"{getattr(error, 'name', path)}: {one_line(error, 160)}"
    problem = getattr(error, "problem", None) or getattr(error, "context", None) or "not YAML"
    return f"{mark.name}:{mark.line + 1}:{mark.column + 1}: {' '.join(problem.split())}"


def flatten(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys that a file sets, dotted, with their values, also those of nested nodes."""
    for name, value in node.items():
        if name in ("defaults", "hydra", "_target_", "_partial_"):
            continue
        key = f"{prefix}.{name}" if prefix else str(name)
        yield key, _number(value)
        if isinstance(value, dict):
            yield from flatten(value, key)


def _number(value: Any) -> Any:
    """Convert texts like 1e-4, which are strings in YAML 1.1 and numbers in OmegaConf."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
