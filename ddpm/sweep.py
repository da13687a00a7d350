"""Several runs of one command: each is tried, and at the end a table says what became of them."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ddpm import mistakes, private, run_dir
from ddpm.errors import InputError
from ddpm.untrusted import Refused, read_yaml

folder: Path | None = None  # of the sweep this process runs, if it runs one
_elsewhere: list[Path] = []  # jobs whose folder is not in it: output_dir=, resume=
_words: dict[Path, list[str]] = {}  # what was asked of each, for those that leave no configuration


class SweepFolder(Callback):
    """Notes the sweep's folder for the table at the end; Hydra calls it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global folder
        try:
            private.check_config(config)  # before Hydra writes it to multirun.yaml
        except InputError as error:
            print(error, file=sys.stderr)
            sys.exit(2)  # of other exceptions Hydra makes a warning
        folder = Path(config.hydra.sweep.dir)
        _elsewhere.clear()
        _words.clear()


def attempt(
    run: Callable[[DictConfig], dict[str, Any] | None], cfg: DictConfig
) -> dict[str, Any] | None:
    """Run one job; if it fails, say so, keep the reason in its folder and let the next one come."""
    hydra_config = HydraConfig.get()
    own = Path(hydra_config.sweep.dir) / hydra_config.sweep.subdir
    _words[own] = private.as_typed(hydra_config)
    try:
        result = run(cfg)
    except Exception as error:
        message = mistakes.explain(error)
        if message is None:
            traceback.print_exception(error)
        else:
            print(message, flush=True)
        if not run_dir.read_status(own):  # it failed before it had a folder of its own
            run_dir.write_status(own, "failed", error=message or repr(error))
        return None
    if result is not None and not (own / "status.json").exists():
        _elsewhere.append(result["dir"])
        _words[result["dir"]] = _words[own]
    return result


def summary() -> bool:
    """Print the table of the sweep's jobs; whether all are done."""
    jobs = [path.parent for path in folder.glob("*/status.json")]
    jobs.sort(key=lambda path: (len(path.name.split("-")[0]), path.name))
    rows = [("overrides", "loss", "images/s", "state", "folder")]
    rows += [_row(job) for job in [*jobs, *dict.fromkeys(_elsewhere)]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    done = sum(row[3] == "done" for row in rows)
    stopped = sum(row[3] == "preempted" for row in rows)
    rest = len(rows) - 1 - done - stopped
    preempted = f", {stopped} preempted" if stopped else ""
    print(f"\n{done} done, {rest} failed{preempted}, in {folder}")
    return done == len(rows) - 1


def _row(job: Path) -> tuple[str, ...]:
    """Overrides, last loss, images per second, state and folder of a job."""
    from ddpm.trackers.local import read_metrics

    try:
        words = read_yaml(job / "config.yaml")["overrides"]
    except (OSError, Refused, KeyError, TypeError):  # an export, or a mistake: it left none
        words = _words.get(job, [])
    metrics = read_metrics(job / "metrics.jsonl") if (job / "metrics.jsonl").exists() else []
    last = metrics[-1] if metrics else {}
    return (
        " ".join(words),
        _number(last.get("train/loss"), ".4f"),
        _number(last.get("train/images_per_sec"), ".0f"),
        run_dir.read_status(job).get("state", "done"),
        str(job),
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
