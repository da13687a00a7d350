"""The command line: let Hydra compose the configuration, run the job, and print errors briefly.

torch is imported when a run starts, so that `--help` and `--cfg job` take a second.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from ddpm.errors import InputError, ReportedElsewhere, nearest, shown
from ddpm.runner import own_folder
from ddpm.runner.config import (
    base_run,
    catalog,
    explain,
    overrides,
    paths,
    redaction,
    renamed_keys,
    wandb_settings,
)
from ddpm.runner.config.build import build
from ddpm.runner.config.composed import hydra_config
from ddpm.runner.config.planning import plan
from ddpm.runner.distributed import ranks, threads
from ddpm.runner.execution.execute import Preempted, execute
from ddpm.runner.sweeps import callback, summary
from ddpm.runner.sweeps import folder as sweep_folder
from ddpm.runner.sweeps.launchers.base import register_default_launcher
from ddpm.runner.sweeps.run_job import run_composed
from ddpm.runner.terminal import shell, streams


@dataclass
class Outcome:
    """What came of a single run; Hydra returns none of it.

    Args:
        only_prints: whether its output is all it makes; None: no run was started.
        planned: whether its configuration is valid.
        error: that ended it. Hydra would add lines to it.
    """

    only_prints: bool | None = None
    planned: bool = False
    error: BaseException | None = None


_single = Outcome()


def main() -> None:
    """Run the command line. The exit status is 0, 2 for a mistake of the user, or 1."""
    streams.protect()
    threads.begin()
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        own_folder.use(None)
        sys.argv[1:] = prepared(sys.argv[1:])
        register_default_launcher()
        _run_hydra()
        if _single.error is not None:
            raise _single.error
        if callback.folder is not None and not summary.print_summary(callback.folder):
            sys.exit(1)
        help_only = _single.only_prints is None and callback.folder is None
        if _single.only_prints or help_only:
            _check_printed()
    except KeyboardInterrupt as stop:
        if callback.folder is not None:
            summary.print_summary(callback.folder)
        if ranks.is_rank_zero() and not (isinstance(stop, Preempted) and stop.printed):
            print("Stopped.", file=sys.stderr)
        sys.exit(128 + getattr(stop, "signal", signal.SIGINT))
    except ReportedElsewhere:
        sys.exit(2)
    except Exception as error:
        if callback.folder is not None:
            sweep_folder.remove_unused(callback.folder)
        message = explain.explain(error)
        if message is not None and not _single.planned and not ranks.is_local_rank_zero():
            sys.exit(2)  # all processes find the same mistake; one of them prints it
        if message is None or wants_traceback:
            traceback.print_exception(error)
        if message is None:
            sys.exit(1)
        print(message, file=sys.stderr)
        sys.exit(2)


def _run_hydra() -> None:
    """Let Hydra handle the command line; do not exit after a help text."""
    try:
        _hydra_main()
    except SystemExit as end:
        if end.code or callback.folder is not None:
            raise


def _check_printed() -> None:
    """Check the output of a command that only prints. Exit with status 1 if a part of it could not
    be written; silently if the reading process has closed the pipe."""
    sys.stdout.flush()
    error = streams.loss_of("stdout")
    if error is None:
        return
    if not isinstance(error, BrokenPipeError):
        print(f"stdout: {streams.reason(error)}", file=sys.stderr)
    sys.exit(1)


def prepared(arguments: list[str]) -> list[str]:
    """The arguments of a command as Hydra needs them: flags first; then the overrides, with texts
    in quotes; then the options inherited from an older run.

    Raises:
        InputError: one of them can be refused before Hydra reads it.
    """
    _check_folder()
    if os.environ.get("DDPM_TEAM") == "":  # Hydra would take the empty text for a name
        del os.environ["DDPM_TEAM"]
    redaction.check_words(arguments)  # before any other message can repeat a secret
    flags, words = _split(arguments)
    if folder := get_args_parser().parse_known_args(flags)[0].config_dir:
        own_folder.use(Path(os.path.abspath(folder)))
    _check_bare_words(words)
    words = renamed_keys.in_words(words)
    multirun = not {"-m", "--multirun"}.isdisjoint(flags)
    words = [overrides.with_text_values(word, _texts(), multirun=multirun) for word in words]
    if multirun:
        if any(flag in ("-c", "--cfg") for flag in flags):
            raise InputError("--cfg shows the configuration of one run; leave out -m.")
        _check_swept(words)
    _check_chosen_once(words)
    _check_chosen_files(words)
    shows = any(flag.partition("=")[0] in ("-c", "--cfg", "-h", "--help") for flag in flags)
    return [*flags, *words, *base_run.inherited(words, must_exist=not shows)]


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split arguments into flags, with their values, and overrides.

    Raises:
        InputError: a flag does not exist.
    """
    known = {
        flag: action for action in get_args_parser()._actions for flag in action.option_strings
    }
    flags, words, remaining = [], [], iter(arguments)
    for argument in remaining:
        flag = argument.split("=")[0]
        if not flag.startswith("-"):
            words.append(argument)
            continue
        if not flag.strip("-") or not any(name.startswith(flag) for name in known):
            raise InputError(_no_such_flag(argument, flag, known))
        flags.append(_with_home(argument))
        if argument in known and known[argument].nargs is None:  # --config-dir mine
            flags += [value for value in [next(remaining, None)] if value is not None]
    return flags, words


def _check_bare_words(words: list[str]) -> None:
    """Check that no word lacks its key, where the key is known: a job, an option after the name of
    its group, or the folder of a run. Others are reported when Hydra cannot parse them.

    Raises:
        InputError: one does.
    """
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if "=" in word:
            continue
        meant = None
        if word in catalog.options("job"):
            meant = f"job={word}"
        elif word in catalog.groups() and following in catalog.options(word):
            meant, word = f"{word}={following}", f"{word} {following}"
        elif os.path.isfile(os.path.join(word, "config.yaml")):
            meant = shell.word("checkpoint", word)
            if "job" not in overrides.values(words):
                meant = f"job=sample {meant}' or '{shell.word('resume', word)}"
        if meant is not None:
            raise InputError(f"{shown(word, 200)}: write key=value. Did you mean '{meant}'?")


def _no_such_flag(argument: str, flag: str, known: Iterable[str]) -> str:
    """The message for an unknown flag: the key of that name, or the nearest flag."""
    name = flag.lstrip("-")
    if len(name) < 2:  # every flag of one letter is near every other
        return f"{argument}: no such flag. `python run.py --help` lists them."
    if key := explain.key_named(name.replace("-", "_")):
        return f"{argument}: no such flag. Keys are set without dashes: {key}=..."
    return f"{argument}: no such flag.{nearest(flag, known)}"


def _with_home(word: str) -> str:
    """Expand `~` in `--config-dir=~/mine`: shells do not expand it after a `=`."""
    flag, equals, value = word.partition("=")
    return f"{flag}={os.path.expanduser(value)}" if equals else word


def _check_folder() -> None:
    """Check that the current folder exists: paths are relative to it.

    Raises:
        InputError: it was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("The current folder was deleted. Change to one that exists.") from None


def _check_chosen_once(words: list[str]) -> None:
    """Check that no group whose options add up is chosen twice, with different options. Hydra uses
    the last only, as scripts want it that replace an option of theirs: `$base data=mnist`.

    Raises:
        InputError: one is.
    """
    first: dict[str, tuple[str, Override]] = {}
    for word in words:
        override = overrides.parse(word)
        if override is None or override.is_delete():
            continue
        group = override.key_or_group
        if group not in catalog.ADDED_UP:
            continue
        earlier_word, earlier = first.setdefault(group, (word, override))
        if earlier.get_value_string() == override.get_value_string():
            continue
        options = [o for part in (earlier, override) for o in catalog.as_list(part.value())]
        remedy = "leave one out"
        if all(isinstance(option, str) for option in options):
            both = ",".join(map(shell.quoted, dict.fromkeys(options)))
            remedy = f"for both, {shell.bash_word(f'{group}=[{both}]')}"
        raise InputError(f"{earlier_word} {word}: only the last of them would count; {remedy}.")


def _check_chosen_files(words: list[str]) -> None:
    """Check the chosen files before Hydra reads them: its own errors name only the consequences.

    Raises:
        InputError: Hydra would misread a file.
    """
    folders = [folder for folder in (catalog.CONF, own_folder.current()) if folder is not None]
    chosen: dict[str, Any] = {"team": os.environ.get("DDPM_TEAM")}
    chosen |= {k: v for k, v in overrides.values(words).items() if k in catalog.groups()}
    for file in catalog.chosen_files(folders, chosen):
        if problem := catalog.misread(file):
            raise InputError(problem)


def _texts() -> set[str]:
    """Keys and groups whose values are texts, even if they look like numbers."""
    return {*paths.KEYS, *catalog.groups(), *wandb_settings.KEYS}


def _check_swept(words: list[str]) -> None:
    """Check that a command names at most one sweep, and none over jobs that only read runs.

    Raises:
        InputError: it does otherwise.
    """
    for word in words:
        override = overrides.parse(word)
        if override is None or not override.is_sweep_override():
            continue
        if override.key_or_group == "sweep":
            raise InputError(f"{word}: must be one name; a command runs one sweep.")
        if override.key_or_group == "job" and override.is_choice_sweep():
            for job in override.sweep_string_iterator():
                if catalog.kind_of(job) == "reads":
                    raise InputError(callback.no_sweep(job))


@hydra.main(config_path=str(catalog.CONF), config_name="config", version_base="1.3")
def _hydra_main(cfg: DictConfig) -> float | None:
    """Run one command, or one job of a sweep that a third-party launcher starts."""
    if hydra_config().mode == RunMode.MULTIRUN:
        return run_composed(cfg)
    _single.only_prints = hydra_config().runtime.choices.job in ("status", "compare")
    try:
        if cfg.kind == "reads":
            build(cfg["job"], "job")(cfg)
            return None
        with ranks.report_once():
            planned = plan(cfg)
        _single.planned = True
        execute(planned)
    except BaseException as error:
        _single.error = error
    return None
