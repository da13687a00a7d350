"""The door: Hydra comes in, plain Python goes on, and every mistake is answered in a line or two.

torch is imported when a run starts, so `--help` and `--cfg job` answer in a second.
"""

import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ddpm import catalog, mistakes, private, sweep
from ddpm.config import plan
from ddpm.errors import InputError, nearest
from ddpm.inherit import TRAINING, inherited

PICTURES = ("strip.png", "grid.png", "denoising.gif")  # what jobs other than training leave


class Preempted(KeyboardInterrupt):
    """A run was asked to stop and did, with all in order; what comes after it does not begin."""

    def __init__(self, signal: int | None) -> None:
        self.signal = signal or 15  # without one, the process that started this one died


_single: dict[str, Any] = {}  # how a single run ended: Hydra would add lines of its own
_inherited: list[str] = []  # overrides that the user did not type


def main() -> None:
    """Run what the command line asks for; exit status 0, 2 for a mistake in it, else 1."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are to reach us, not to be printed by Hydra
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        _prepare_arguments()
        _hydra_main()
        if "error" in _single:
            raise _single["error"]
        if sweep.folder is not None and not sweep.summary():
            sys.exit(1)
    except KeyboardInterrupt as stop:
        if sweep.folder is not None:
            sweep.summary()
        print("Stopped.", file=sys.stderr)
        sys.exit(128 + getattr(stop, "signal", signal.SIGINT))
    except Exception as error:
        message = mistakes.explain(error)
        if message is None or wants_traceback:
            traceback.print_exception(error)
        if message is None:
            sys.exit(1)
        print(message, file=sys.stderr)
        sys.exit(2)


def _prepare_arguments() -> None:
    """Flags to the front, where Hydra's parser wants them, and what a run takes over to the end."""
    private.check_words(sys.argv[1:])  # first of all: other messages repeat what they are about
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
        first.append(word)
        if word in known and known[word].nargs is None:  # --config-dir mine
            first += [value for value in [next(words, None)] if value is not None]
    _inherited[:] = inherited(rest)
    sys.argv[1:] = [*first, *rest, *_inherited]


@hydra.main(config_path=str(catalog.CONF), config_name="config", version_base="1.3")
def _hydra_main(cfg: DictConfig) -> float | None:
    """One job. In a sweep, a failure is kept in the job's folder and the next one goes on."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        result = sweep.attempt(run, cfg)
    else:
        try:
            result = run(cfg)
        except BaseException as error:
            _single["error"] = error
            return None
    return result.get("train/loss") if result else None  # for a sweeper to optimise


def run(cfg: DictConfig) -> dict[str, Any] | None:
    """Plan a run, launch it, and say what came of it."""
    planned = plan(cfg, _inherited)
    print(f"{planned.config['choices']['job']:8} {planned.name}", flush=True)
    from ddpm.launch import launch  # torch comes in here, seconds after a mistake would have shown

    result = launch(planned)
    if result is not None:
        _say_end(result, planned.config["choices"]["job"])
        if result["state"] == "preempted":
            raise Preempted(result["signal"])
    return result


def _say_end(result: dict[str, Any], job: str) -> None:
    """What came of the run, and what a person does next."""
    if job == "export":
        return  # it told all itself
    folder: Path = result["dir"]
    if job in TRAINING:
        _say_trained(result, job)
    elif result["state"] == "preempted":
        print(f"preempted  {folder}; the same command goes on")
    else:
        made = [name for name in PICTURES if (folder / name).is_file()] or ["samples"]
        beside = f" and {', '.join(made[1:])} beside it" if made[1:] else ""
        print(f"{result['state']:8} {folder / made[0]}{beside}")


def _say_trained(result: dict[str, Any], job: str) -> None:
    """How far the training came, and what a person does next."""
    folder: Path = result["dir"]
    print(f"{result['state']:8} {result['step']} steps in {folder}")
    if result["state"] == "preempted":
        print(f"go on    python run.py resume={folder}")
        return
    if job == "train_classifier":
        print(
            "guide    python run.py job=sample checkpoint=<a run of the same data> "
            f"guidance=classifier guidance.classifier={folder}"
        )
        return
    pictures = sorted((folder / "samples").glob("step-*.png"))
    print(f"picture  {pictures[-1] if pictures else 'none'}")
    print(f"sample   python run.py job=sample checkpoint={folder}")
