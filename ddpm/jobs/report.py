"""job=report: a page about runs. Imports torch only to log the page to W&B."""

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from ddpm.errors import InputError, nearest
from ddpm.runner.config import overrides, paths, redaction, rules, validate, wandb_settings
from ddpm.runner.config.build import build
from ddpm.runner.config.composed import hydra_config, to_dict, typed_words
from ddpm.runner.runs import run_dir
from ddpm.runner.safe_io import listing
from ddpm.runner.sweeps import folder

_NAMED = ("sweep", "runs", "output_dir")
_KEYS = ("job", *_NAMED, "tracker", "team")


class Selection(NamedTuple):
    """The runs that a read-only job is about."""

    folders: list[Path]
    title: str
    output_dir: Path  # where a report of them belongs
    typed: list[str]  # the keys of the command line


def report(cfg: DictConfig) -> None:
    """job=report: write a page about runs, and show it to W&B where W&B knows one of them.

    Raises:
        InputError: the command line names no runs, or keys that this job does not take.
    """
    selection = select_runs(cfg, "report")
    from ddpm.runner.report import write  # imports numpy

    asked = any(key.startswith("tracker") for key in selection.typed)
    trackers = _trackers(cfg, selection.folders, asked=asked)
    files = write(selection.folders, selection.output_dir, selection.title)
    for file in files:
        print(f"report   {file}")
    if trackers:
        _show(trackers, files, selection.output_dir, selection.title)


def select_runs(cfg: DictConfig, job: str) -> Selection:
    """The runs that the command line names by sweep= or runs=.

    Raises:
        InputError: it names none, or keys that the job does not take.
    """
    words = typed_words()
    typed = [word.lstrip("+").split("=")[0] for word in words]
    for key in typed:
        if key.split(".")[0] not in _KEYS:
            raise InputError(
                f"{key}: job={job} reads runs that exist; it takes sweep=<name> or runs=[<folder>]."
            )
    redaction.check_config(cfg)
    named = {key: _plain(cfg[key]) for key in _NAMED}
    paths.normalise(named, words)
    folders, title, default = _chosen(named, job)
    output_dir = Path(named["output_dir"]) if named["output_dir"] is not None else default
    return Selection(folders, title, output_dir, typed)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _chosen(named: dict[str, Any], job: str) -> tuple[list[Path], str, Path]:
    """The runs to look at, what they are called together, and where a report of them belongs.

    Raises:
        InputError: none are named, or they are not there.
    """
    sweep, runs = named["sweep"], named["runs"]
    if (sweep is None) == (runs is None):
        raise InputError(
            f"job={job}: say which runs, by sweep=<name> or by 'runs=[<folder>,<folder>]'."
        )
    if runs is not None:
        runs = [runs] if isinstance(runs, str) else runs
        if not runs:
            raise InputError("runs=[]: names no run folders.")
        for path in runs:
            if not folder.is_job(Path(path)):
                raise InputError(f"runs: {path} is not the folder of a run (no config.yaml).")
        now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        title = Path(runs[0]).name if len(runs) == 1 else f"{len(runs)} runs"
        return [Path(path) for path in runs], title, Path("outputs/report") / now
    path = Path(paths.sweep_dir(sweep, "")) if "/" in sweep else Path(_sweep_dir())
    if not (found := folder.jobs(path)):
        there = [e.name for e in listing.entries(path.parent) if listing.is_folder(e)]
        known = f" There are {', '.join(sorted(there)[:8])}." if there else ""
        raise InputError(f"sweep={sweep}: no jobs in {path}.{nearest(sweep, there)}{known}")
    return found, path.name, path


def _sweep_dir() -> str:
    """Where a sweep of this name is put: a team or the command line may have moved all of them."""
    return paths.as_text(hydra_config().sweep.dir)


def _trackers(cfg: DictConfig, folders: list[Path], *, asked: bool) -> dict[str, Any]:
    """The trackers to show a report: those of the command line, else W&B where it knows a run.

    Where W&B is told, this start says, or its team: the runs may be somebody else's.
    """
    validate.drop_unchosen(cfg)
    if asked:
        return _said(cfg)
    known = "wandb" in cfg.tracker and any(map(_tracked, folders))
    return {"wandb": _said(cfg)["wandb"]} if known else {}


def _said(cfg: DictConfig) -> dict[str, Any]:
    """The settings of the trackers. A report has a name and a job type of its own, unless the
    command line gives it others.

    Raises:
        InputError: one of them has a value that is not allowed.
    """
    config = {"tracker": to_dict(cfg.tracker, resolve=True)}
    typed = filter(None, map(overrides.parse, typed_words()))
    choices = dict(hydra_config().runtime.choices)
    untyped = wandb_settings.fill_from_env(config, typed, validate.folders(), choices)
    for key in {"name", "job_type"} & set(untyped):
        config["tracker"]["wandb"][key] = None
    wandb_settings.normalise(config)
    rules.check(config, {})
    return config["tracker"]


def _tracked(path: Path) -> bool:
    """Whether a run was shown to W&B."""
    try:
        tracker = run_dir.read_config(path).get("tracker")
    except InputError:
        return False
    return isinstance(tracker, dict) and "wandb" in tracker


def _show(trackers: dict[str, Any], files: list[Path], output: Path, title: str) -> None:
    """Give the report to trackers, as a run of the group that the runs are in; the same run each
    time that this report is made."""
    from ddpm.trackers.base import RunInfo
    from ddpm.trackers.multi import open_trackers

    run = RunInfo(
        run_id=_run_id(output, title),
        name=f"report {title}",
        group=title,
        tags=["report"],
        job_type="report",
    )
    made = build(trackers, "tracker")
    # What trackers write is a run's own affair where the report lies in the folder of one.
    run_dir = output / "report" if (output / "config.yaml").exists() else output
    with open_trackers(
        made, run_dir=run_dir, run=run, hparams={"report": title}, start_step=0
    ) as tracker:
        tracker.log_files("report", 0, files, final=True)
        for place in tracker.places:
            print(f"tracker  {place}")


def _run_id(output: Path, title: str) -> str:
    """The id of a report's run: that of this folder and group, and no other."""
    told = f"{title}\0{os.path.realpath(output)}"
    return hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()[:8]
