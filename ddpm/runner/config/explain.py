"""Explain errors of Hydra and OmegaConf: the mistake on the command line and how to correct it."""

import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from ddpm.errors import InputError, NoSuchKey, causes, listed, nearest, shown
from ddpm.runner import own_folder
from ddpm.runner.config import catalog, common_names, overrides, paths
from ddpm.runner.runs import find
from ddpm.runner.safe_io import listing
from ddpm.runner.safe_io.atomic import FULL
from ddpm.runner.safe_io.tree import key_of

# Plugins of Hydra, and the packages that provide them.
PLUGINS = {
    ("launcher", "joblib"): "hydra-joblib-launcher",
    ("launcher", "submitit_local"): "hydra-submitit-launcher",
    ("launcher", "submitit_slurm"): "hydra-submitit-launcher",
    ("launcher", "ray"): "hydra-ray-launcher",
    ("launcher", "rq"): "hydra-rq-launcher",
    ("sweeper", "ax"): "hydra-ax-sweeper",
    ("sweeper", "nevergrad"): "hydra-nevergrad-sweeper",
}


_PLACEHOLDER = re.compile(r"<[a-z][\w ,.-]*>", re.ASCII)  # of the documentation


def explain(error: BaseException) -> str | None:
    """The message for a mistake of the user; None for an error of the program."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, NoSuchKey):
            return _with_misread_file(str(cause))
        if isinstance(cause, InputError):
            return str(cause)
    text = "\n".join(str(cause) for cause in chain)
    if raised := re.search(r"^ddpm\.errors\.InputError: ([\s\S]+)", text, re.MULTILINE):
        return raised[1].strip()  # from a child process, which returns only text
    for cause in chain:
        if isinstance(cause, yaml.YAMLError):
            return catalog.unreadable(cause, "a YAML file")
        if isinstance(cause, UnicodeDecodeError) and (message := _not_text()):
            return message
    if isinstance(error, RecursionError) and _is_of_hydra(error):
        return "The defaults lists of the chosen files refer to each other in a circle."
    if isinstance(error, OverrideParseException):
        return _unreadable_override(str(error.override))
    if "Ambiguous value" in text:
        return _several_values(text)
    if isinstance(error, MissingConfigException):
        return _missing_config(error, text)
    if key := re.search(r"Key '[^']*' is not in struct\s+full_key: (\S+)", text):
        return _with_misread_file(no_such_key(key[1]))
    if "Config group override must be a string or a list" in text:
        word = _scalar_group()
        spelled = overrides.spelled_with_quotes(word)
        quotes = f" An option of that name is chosen by {spelled}." if spelled else ""
        return f"{word}: must be the name of an option of this group.{quotes}"
    if name := re.search(r"Environment variable '([^']+)' not found", text):
        key = re.search(r"full_key: (\S+)", text)
        return f"{key[1] if key else 'a key'}: the environment variable {name[1]} is not set."
    if group := re.search(r"Could not override '(features|metric)", text):
        return f"{group[1]}: this job measures nothing; {group[1]} is for job=evaluate."
    if key := re.search(r"Could not override '(hydra\.(?:launcher|sweeper)\.[^']+)'", text):
        return _no_such_setting(key[1])
    if "does not support sweep type" in text:
        return _searched(text)
    if "Could not override 'ema" in text:
        return "ema: this job trains nothing; averages are chosen by job.weights, as ema:0.07."
    if isinstance(error, HydraException | OmegaConfBaseException):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return "\n".join(list(dict.fromkeys(lines))[:4])
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in FULL:  # in the middle of a file: no name
        return f"{error.strerror}. Free some disk space; the same command then resumes the run."
    return None


def _is_of_hydra(error: BaseException) -> bool:
    """Whether an error was raised while Hydra composed the configuration."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return any(file.endswith("defaults_list.py") for file in files)


def _unreadable_override(word: str) -> str:
    """How to write an override that Hydra cannot parse."""
    key, equals, value = word.partition("=")
    start = f"{shown(word, 200)}: cannot be parsed."
    if stands := _PLACEHOLDER.search(value):
        return f"{shown(word, 200)}: {_stands_for(stands[0])}"
    spelled = overrides.spelled_with_quotes(word)
    holds_text = key.lstrip("+~") in paths.KEYS or value.lstrip()[:1] not in ("[", "{")
    if equals and value and spelled and holds_text:
        return (
            f"{start} A text with non-ASCII letters or any of = , ; ( ) [ ] {{ }} ~ & !\n"
            f"needs double quotes, and for the shell single quotes around the whole:\n  {spelled}"
        )
    return (
        f"{start} Write key=value without spaces, as in job.max_steps=500, and quote characters "
        "that the shell interprets, as in 'tracker=[wandb,tensorboard]'."
    )


def _stands_for(placeholder: str) -> str:
    """What to write in place of a word of the documentation like <run folder>."""
    if "folder" not in placeholder and "run" not in placeholder:
        return f"{placeholder} stands for a name or value of your own, without < and >."
    newest = find.newest_training(Path("outputs"))
    example = newest or "outputs/train/unet-digits/2026-01-31_12-00-00"
    return f"{placeholder} stands for a folder of your own, such as {example}"


def _several_values(text: str) -> str:
    """Several values without -m: how to run a sweep, or how to quote one value with a comma."""
    message = "Several values are a sweep: add -m to run them one after the other."
    match = re.search(r"Ambiguous value for argument '(.*)'$", text, re.MULTILINE)
    typed = match[1] if match else ""
    is_text = key_of(typed) in (*paths.PATHS, *paths.NAMES)
    if is_text and (spelled := overrides.spelled_with_quotes(typed)):
        message += f"\nIf it is one value with a comma: {spelled}"
    return message


def no_such_key(key: str) -> str:
    """The message for an unknown key, with the groups that have it or the nearest key."""
    if key.startswith(("hydra.launcher.", "hydra.sweeper.")):
        return _no_such_setting(key)
    keys = catalog.keys()
    owners = sorted({f"{k.group}={k.option}" for k in keys if k.name == key and k.group})
    if owners:
        return f"{key}: not a key of this run. It belongs to {listed(owners, 8)}."
    hint = nearest(key, {k.name for k in keys} | set(catalog.groups()))
    name = key.rsplit(".", 1)[-1]
    if not hint or "." not in key or name in common_names.KEYS:  # the right name in the wrong node
        namesake = key_named(name)
        hint = f" Did you mean '{namesake}'?" if namesake else hint
    return f"{key}: no such key.{hint} `python run.py --cfg job` prints all keys."


def key_named(name: str) -> str | None:
    """The key or group that ends with a name, that of the fewest nodes if there are several; or the
    one that other programs call so."""
    if ours := common_names.KEYS.get(name):
        return ours
    keys = catalog.keys()
    known = {key.name for key in keys} | set(catalog.groups())
    namesakes = [key for key in known if key == name or key.endswith(f".{name}")]
    return min(namesakes, key=lambda key: (key.count("."), key), default=None)


def _no_such_setting(key: str) -> str:
    """The message for a setting that the chosen launcher or sweeper does not have, with those that
    do, or the nearest setting of any."""
    _, kind, name = key.split(".", 2)
    owners: dict[str, list[str]] = {}
    for path in catalog.yaml_files(catalog.CONF / "hydra" / kind):
        for setting in catalog.read(path).keys() - {"_target_"}:
            owners.setdefault(setting, []).append(f"hydra/{kind}={path.stem}")
    if having := owners.get(name.split(".")[0]):
        return f"{key}: not a key of this command. It belongs to -m {listed(having, 8)}."
    return f"{key}: no such key.{nearest(key, [f'hydra.{kind}.{setting}' for setting in owners])}"


def _searched(text: str) -> str:
    """A range, which Hydra's own sweeper cannot take."""
    ranges = ("interval(", "tag(")
    words = [word for word in sys.argv[1:] if word.partition("=")[2].startswith(ranges)]
    return (
        f"{words[0] if words else text}: a range is searched, by hydra/sweeper=optuna; "
        "hydra/sweeper=basic runs each of several values, as in optimizer.lr=1e-4,1e-3."
    )


def no_such_option(group: str, option: str, options: Sequence[str] | None = None) -> str:
    """The message for an unknown option, with the options of the group."""
    options = [name for name in options or catalog.groups()[group] if not name.startswith(".")]
    typed = common_names.OPTIONS.get((group, option.lower().replace("-", "_")), option)
    return (
        f"{group}={option}: no such option.{nearest(typed, options)} "
        f"{group} can be {', '.join(options)}."
    )


def _missing_config(error: MissingConfigException, text: str) -> str:
    """The message for an unknown option, configuration or plugin of Hydra, with those available."""
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    if group in catalog.groups():
        return no_such_option(group, option, error.options)
    if plugin := re.search(r"Could not find 'hydra/(launcher|sweeper)/([^']+)'", text):
        return _missing_plugin(*plugin.groups())
    if "primary config" in text:
        names = ", ".join(path.stem for path in catalog.yaml_files(catalog.CONF))
        return (
            f"--config-name={error.missing_cfg_file}: no such configuration; the only one is "
            f"{names}. Leave the flag out."
        )
    return next(line for line in text.splitlines() if line.strip())


def _missing_plugin(kind: str, name: str) -> str:
    """The message for a launcher or sweeper that is unknown or not installed."""
    start = f"hydra/{kind}={name}: no such {kind}"
    if package := PLUGINS.get((kind, name)):
        return f"{start} is installed. To install it: pip install {package}"
    ours = [path.stem for path in catalog.yaml_files(catalog.CONF / "hydra" / kind)]
    ours.append("basic")
    plugins = [option for of, option in PLUGINS if of == kind]
    return (
        f"{start}.{nearest(name, ours + plugins)} It can be {', '.join(ours)}; "
        f"plugins of Hydra add {', '.join(plugins)}."
    )


def _with_misread_file(message: str) -> str:
    """Add the first of the user's files that Hydra misreads: it may explain the misplaced key."""
    try:
        problems = map(catalog.misread, _yaml_below([own_folder.current()]))
        cause = next(filter(None, problems), None)
    except listing.Unreachable as error:
        cause = str(error)
    return f"{message}\n{cause}" if cause else message


def _yaml_below(folders: list[Path | None]) -> list[Path]:
    """All YAML files in the folders that there are and their subfolders, without hidden ones.

    Raises:
        Unreachable: a folder cannot be listed.
    """
    files = (path for folder in filter(None, folders) for path in listing.below(folder, "*.yaml"))
    return [path for path in files if not path.name.startswith(".")]


def _not_text() -> str | None:
    """Find the YAML file that is not UTF-8: the error does not name it."""
    try:
        files = _yaml_below([own_folder.current(), catalog.CONF])
    except listing.Unreachable as error:
        return str(error)
    for path in files:
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            return catalog.unreadable(error, path)
    return None


def _scalar_group() -> str:
    """The override that sets a group to a value which is not an option."""
    pairs = (word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    options = catalog.groups()
    return next((f"{k}={v}" for k, v in pairs if k in options and v not in options[k]), "a group")
