"""The door: Hydra comes in, plain Python goes on, and every mistake is answered in a line or two.

torch is imported when a run starts, so `--help` and `--cfg job` answer in a second.
"""

import logging
import os
import signal
import sys
import traceback
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.types import RunMode
from omegaconf import DictConfig

from ddpm.errors import InputError, ReportedElsewhere, nearest
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
from ddpm.runner.config.request import INHERITED
from ddpm.runner.distributed import ranks, threads
from ddpm.runner.execution.execute import execute
from ddpm.runner.sweeps import callback, summary
from ddpm.runner.sweeps.launchers.base import ours_by_default
from ddpm.runner.sweeps.run_job import attempt_composed
from ddpm.runner.terminal import shell, streams

_single: dict[str, Any] = {}  # how a single run ended: Hydra would add lines of its own


def main() -> None:
    """Run what the command line asks for; exit status 0, 2 for a mistake in it, else 1."""
    streams.protect()
    threads.begin()
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are to reach us, not to be printed by Hydra
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        _prepare_arguments()
        ours_by_default()
        _answer()
        if "error" in _single:
            raise _single["error"]
        if callback.folder is not None and not summary.summary():
            sys.exit(1)
        if _single.get("only_prints", callback.folder is None):
            _check_printed()
    except KeyboardInterrupt as stop:
        if callback.folder is not None:
            summary.summary()
        if ranks.is_rank_zero():
            print("Stopped.", file=sys.stderr)
        sys.exit(128 + getattr(stop, "signal", signal.SIGINT))
    except ReportedElsewhere:
        sys.exit(2)
    except Exception as error:
        message = explain.explain(error)
        if message is not None and "planned" not in _single and not ranks.is_local_rank_zero():
            sys.exit(2)  # all processes find the same mistake, and one of them tells
        if message is None or wants_traceback:
            traceback.print_exception(error)
        if message is None:
            sys.exit(1)
        print(message, file=sys.stderr)
        sys.exit(2)


def _answer() -> None:
    """Let Hydra do what the command line asks for."""
    try:
        _hydra_main()
    except SystemExit as end:
        if end.code or callback.folder is not None:
            raise
        # else Hydra has printed a help text


def _check_printed() -> None:
    """See that the reader got the output of a command that does nothing but print.

    Exits with status 1 where a part of it is lost: without a word where the reader has gone.
    """
    sys.stdout.flush()
    error = streams.loss_of("stdout")
    if error is None:
        return
    if not isinstance(error, BrokenPipeError):
        print(f"stdout: {streams.reason(error)}", file=sys.stderr)
    sys.exit(1)


def _prepare_arguments() -> None:
    """Flags to the front, where Hydra's parser wants them, and what a run takes over to the end."""
    _check_folder()
    if os.environ.get("DDPM_TEAM") == "":  # for Hydra that is a name; for a shell it is none
        del os.environ["DDPM_TEAM"]
    redaction.check_words(sys.argv[1:])  # first of all: other messages repeat what they are about
    actions = get_args_parser()._actions
    known = {flag: action for action in actions for flag in action.option_strings}
    first, rest, words = [], [], iter(sys.argv[1:])
    for word in words:
        flag = word.split("=")[0]
        if not flag.startswith("-"):
            rest.append(word)
            continue
        if not any(name.startswith(flag) for name in known):
            raise InputError(f"{word}: there is no such flag.{nearest(flag, known)}")
        first.append(_with_home(word))
        if word in known and known[word].nargs is None:  # --config-dir mine
            first += [value for value in [next(words, None)] if value is not None]
    rest = renamed_keys.in_words(rest)
    multirun = not {"-m", "--multirun"}.isdisjoint(first)
    rest = [overrides.with_text_values(word, _texts(), multirun=multirun) for word in rest]
    if multirun:
        if any(word in ("-c", "--cfg") for word in first):
            raise InputError("--cfg shows the configuration of one run; leave out -m.")
        _check_one_sweep(rest)
    _check_chosen_files(first, rest)
    sys.argv[1:] = [*first, *rest, *_inherited(rest)]


def _inherited(words: list[str]) -> list[str]:
    """Overrides for the options that a run takes from an older one, and the key that lists them."""
    options = base_run.inherited(words)
    listed = ",".join(map(shell.quoted, options))
    return [*options, f"{INHERITED}=[{listed}]"] if options else []


def _with_home(word: str) -> str:
    """`--config-dir=~/mine` with the home folder: after a `=`, shells leave `~` as it is."""
    flag, equals, value = word.partition("=")
    return f"{flag}={os.path.expanduser(value)}" if equals else word


def _check_folder() -> None:
    """See that there is a current folder: paths are relative to it.

    Raises:
        InputError: it was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("The current folder was deleted. Change to one that exists.") from None


def _check_chosen_files(flags: list[str], words: list[str]) -> None:
    """See that Hydra will read the files that the command line chooses as they were meant.

    Raises:
        InputError: it would not; what Hydra itself says then is about the consequences.
    """
    folders = [catalog.CONF, *catalog.own_folders(flags)]
    named = overrides.values(words).items()
    chosen = [(group, option) for group, option in named if group in catalog.groups()]
    chosen.append(("team", os.environ.get("DDPM_TEAM")))
    for group, choice in chosen:
        for option in filter(None, catalog.as_list(choice)):
            for file in (folder / group / f"{option}.yaml" for folder in folders):
                if os.path.isfile(file) and (problem := catalog.misread(file)):
                    raise InputError(problem)


def _texts() -> set[str]:
    """Keys and groups whose values are texts, also where they look like numbers."""
    return {*paths.KEYS, *catalog.groups(), *wandb_settings.KEYS}


def _check_one_sweep(words: list[str]) -> None:
    """See that a command names one sweep at most.

    Raises:
        InputError: it gives several names.
    """
    for word in words:
        override = overrides.parse(word)
        if override and override.key_or_group == "sweep" and override.is_sweep_override():
            raise InputError(f"{word}: a command is one sweep and has one name.")


@hydra.main(config_path=str(catalog.CONF), config_name="config", version_base="1.3")
def _hydra_main(cfg: DictConfig) -> float | None:
    """One run; or one job of a sweep, for launchers that are not ours."""
    if hydra_config().mode == RunMode.MULTIRUN:
        return attempt_composed(cfg)
    _single["only_prints"] = hydra_config().runtime.choices.job == "status"
    try:
        if cfg.kind == "reads":
            build(cfg["job"], "job")(cfg)
            return None
        with ranks.report_once():
            planned = plan(cfg)
        _single["planned"] = True
        execute(planned)
    except BaseException as error:
        _single["error"] = error
    return None
