"""job=report: a page about runs. Imports torch only to log the page to W&B."""

import hashlib
import os
from collections.abc import Sequence
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
from ddpm.runner.safe_io.tree import key_of
from ddpm.runner.sweeps import folder


class Selection(NamedTuple):
    """The runs that a read-only job reads."""

    folders: list[Path]
    title: str
    output_dir: Path  # the folder of their report
    typed: list[str]  # the keys of the command line


def report(cfg: DictConfig) -> None:
    """job=report: write a page about runs, and log it to W&B if one of them was logged there.

    Raises:
        InputError: the command line names no runs, or keys that this job does not take.
    """
    selection = select_runs(cfg, "report")
    from ddpm.runner.report import write  # imports numpy

    chosen = any(key.startswith("tracker") for key in selection.typed)
    trackers = _trackers(cfg, selection.folders, chosen=chosen)
    files = write(selection.folders, selection.output_dir, selection.title)
    for file in files:
        print(f"report   {file}")
    if trackers:
        _log(trackers, files, selection.output_dir, selection.title)


def select_runs(cfg: DictConfig, job: str) -> Selection:
    """The runs that the command line names by sweep= or runs=.

    Raises:
        InputError: it names none, or keys that the job does not take.
    """
    takes = f"job={job} only reads runs; it takes sweep=<name> or runs=[<folder>]"
    keys = read_keys(cfg, ("sweep", "runs", "output_dir"), takes, others=("tracker",))
    folders, title, default = _find_runs(keys["sweep"], keys["runs"], job)
    output_dir = Path(keys["output_dir"]) if keys["output_dir"] is not None else default
    return Selection(folders, title, output_dir, list(map(key_of, typed_words())))


def read_keys(
    cfg: DictConfig, keys: Sequence[str], takes: str, others: Sequence[str] = ()
) -> dict[str, Any]:
    """The values of the keys of a read-only job, as plain data.

    Args:
        takes: the keys that the job takes, in a sentence for messages.
        others: keys beside `job`, `team` and these that the command line may set.

    Raises:
        InputError: the command line sets another key, or one of these to what is no path.
    """
    words = typed_words()
    for key in map(key_of, words):
        if key.split(".")[0] not in ("job", "team", *keys, *others):
            raise InputError(f"{key}: {takes}.")
    redaction.check_config(cfg)
    values = {key: _plain(cfg[key]) for key in keys}
    paths.normalise(values, words)
    return values


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _find_runs(
    sweep: str | None, runs: str | list[str] | None, job: str
) -> tuple[list[Path], str, Path]:
    """The folders of the runs, their common title, and the default folder of their report.

    Raises:
        InputError: no runs are named, or they do not exist.
    """
    if (sweep is None) == (runs is None):
        raise InputError(
            f"job={job}: name the runs, either by sweep=<name> or by 'runs=[<folder>,<folder>]'."
        )
    if runs is not None:
        runs = [runs] if isinstance(runs, str) else runs
        if not runs:
            raise InputError("runs=[]: names no run folders.")
        for run in runs:
            if not folder.is_job_folder(Path(run)):
                raise InputError(f"runs: {run} is not the folder of a run (no config.yaml).")
        now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        title = Path(runs[0]).name if len(runs) == 1 else f"{len(runs)} runs"
        return [Path(run) for run in runs], title, Path("outputs/report") / now
    assert sweep is not None
    # A team or the command line may have moved all sweeps.
    named = paths.sweep_dir(sweep, "") if "/" in sweep else paths.as_text(hydra_config().sweep.dir)
    path = Path(named)
    if not (jobs := folder.job_folders(path)):
        sweeps = [e.name for e in listing.entries(path.parent) if listing.is_folder(e)]
        existing = f" Existing sweeps: {', '.join(sorted(sweeps)[:8])}." if sweeps else ""
        raise InputError(f"sweep={sweep}: no jobs in {path}.{nearest(sweep, sweeps)}{existing}")
    return jobs, path.name, path


def _trackers(cfg: DictConfig, folders: list[Path], *, chosen: bool) -> dict[str, Any]:
    """The trackers for a report: those of the command line, else W&B if a run was logged there.

    The W&B project is that of this start or its team, not of the runs, which may be of others.
    """
    validate.drop_unchosen(cfg)
    if chosen:
        return _settings(cfg)
    logged = "wandb" in cfg.tracker and any(map(_was_logged, folders))
    return {"wandb": _settings(cfg)["wandb"]} if logged else {}


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings of the trackers. A report has its own name and job type, unless the command
    line sets them.

    Raises:
        InputError: one of them has a value that is not allowed.
    """
    config = {"tracker": to_dict(cfg.tracker, resolve=True)}
    typed = filter(None, map(overrides.parse, typed_words()))
    choices = dict(hydra_config().runtime.choices)
    unset = wandb_settings.fill_from_env(config, typed, validate.folders(), choices)
    for key in {"name", "job_type"} & set(unset):
        config["tracker"]["wandb"][key] = None
    wandb_settings.normalise(config)
    rules.check(config, {})
    return config["tracker"]


def _was_logged(path: Path) -> bool:
    """Whether a run was logged to W&B."""
    try:
        tracker = run_dir.read_config(path).get("tracker")
    except InputError:
        return False
    return isinstance(tracker, dict) and "wandb" in tracker


def _log(trackers: dict[str, Any], files: list[Path], output: Path, title: str) -> None:
    """Log the report to trackers as a run in the group of the runs; writing the report again
    updates the same run."""
    from ddpm.trackers.base import RunInfo
    from ddpm.trackers.multi import open_trackers

    run = RunInfo(
        run_id=_run_id(output, title),
        name=f"report {title}",
        group=title,
        tags=["report"],
        job_type="report",
    )
    # In a run's folder, the trackers of the report must not write among the run's files.
    folder = output / "report" if (output / "config.yaml").exists() else output
    with open_trackers(
        build(trackers, "tracker"),
        run_dir=folder,
        run=run,
        hparams={"report": title},
        start_step=0,
    ) as tracker:
        tracker.log_files("report", 0, files, final=True)
        for place in tracker.places:
            print(f"tracker  {place}")


def _run_id(output: Path, title: str) -> str:
    """The id of a report's run, which depends on its folder and group."""
    identity = f"{title}\0{os.path.realpath(output)}"
    return hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:8]
