"""Several runs of one command: each is tried, and at the end a table says what became of them."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ddpm import mistakes, run_dir

folder: Path | None = None  # of the sweep this process runs, if it runs one


class SweepFolder(Callback):
    """Notes the sweep's folder for the table at the end; Hydra calls it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global folder
        folder = Path(config.hydra.sweep.dir)


def attempt(run: Callable[[DictConfig], float | None], cfg: DictConfig) -> float | None:
    """Run one job; if it fails, say so, keep the reason in its folder and let the next one come."""
    hydra_config = HydraConfig.get()
    try:
        return run(cfg)
    except Exception as error:
        message = mistakes.explain(error)
        if message is None:
            traceback.print_exception(error)
        else:
            print(message, flush=True)
        path = Path(hydra_config.sweep.dir) / hydra_config.sweep.subdir
        if not run_dir.read_status(path):  # it failed before it had a folder of its own
            run_dir.write_config(path, {"overrides": list(hydra_config.overrides.task)})
            run_dir.write_status(path, "failed", error=message or repr(error))
        return None


def summary(path: Path) -> bool:
    """Print the table of a sweep's jobs; whether all are done."""
    from ddpm.trackers.local import read_metrics

    rows = [("overrides", "loss", "images/s", "state", "folder")]
    jobs = [p.parent for p in path.glob("*/status.json")]
    states = []
    for job in sorted(jobs, key=lambda p: (len(p.name.split("-")[0]), p.name)):
        states.append(run_dir.read_status(job).get("state", "unknown"))
        config = yaml.safe_load((job / "config.yaml").read_text())
        metrics = read_metrics(job / "metrics.jsonl") if (job / "metrics.jsonl").exists() else []
        last = metrics[-1] if metrics else {}
        rows.append(
            (
                " ".join(config["overrides"]),
                _number(last.get("train/loss"), ".4f"),
                _number(last.get("train/images_per_sec"), ".0f"),
                states[-1],
                str(job),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    failed = sum(state != "done" for state in states)
    print(f"\n{len(states) - failed} done, {failed} failed, in {path}")
    return not failed


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
