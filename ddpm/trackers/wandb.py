"""Weights & Biases. wandb is imported only when a run is opened."""

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.runner.runs import previews
from ddpm.runner.safe_io.atomic import bare_copies
from ddpm.trackers.base import RunInfo, logged_until
from ddpm.trackers.wandb_client import history, limits, session
from ddpm.trackers.wandb_client.uploads import Uploads, waiting_time


class Wandb:
    """A W&B run: online if possible, otherwise offline with the command that uploads it later.

    Metrics are plotted against our own `step`, logged in every row: W&B's counter only increases,
    ours returns to the checkpoint when a run is resumed. Repeated steps that W&B has are not logged
    again; earlier steps that it lacks are taken from metrics.jsonl.
    """

    def __init__(
        self,
        *,
        entity: str | None,
        project: str,
        group: str | None,
        name: str | None,
        tags: list[str],
        notes: str | None,
        job_type: str | None,
        mode: str | None,
        artifacts: str,
        run_dir: Path,
        run: RunInfo,
        hparams: dict[str, Any],
        start_step: int,
    ) -> None:
        run_dir = Path(run_dir)
        full_name = f"{name} {run.title}".strip() if name else run.name
        group = group or run.group
        self._run, obstacle = session.open_run(
            limits.wanted_mode(mode),
            id=run.run_id,
            dir=str(run_dir.absolute()),
            entity=entity,
            project=project,
            group=limits.shortened(group) if group else None,
            name=limits.labelled(name, run.title) if name else _display_name(run.name),
            tags=limits.tags([*run.tags, *tags]),
            notes=limits.cleaned_notes(notes) if notes else None,
            job_type=limits.shortened(job_type or run.job_type),
            config=hparams | _cut({"full_name": full_name, "full_group": group}),
            commit=(hparams.get("code") or {}).get("commit"),
        )
        self._run.define_metric("*", step_metric="step")
        self._uploads = Uploads(self._run, run_dir, run.run_id, artifacts)
        self._seen = self._history(run_dir)
        self._catch_up(run_dir, start_step)
        for source in ("source", "classifier_source", "weak_source", "init_source"):
            if artifact := (hparams.get(source) or {}).get("artifact"):
                self._uploads.uses(artifact)
        self.where: str | None = self._location(run_dir, obstacle)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log one row, which includes our step."""
        if step > self._seen.step:
            self._send({"step": step, **metrics})

    def log_image(self, step: int, name: str, grid: Tensor) -> None:
        """Log an image, uint8 (C, H, W). W&B does not rescale: floats would appear black."""
        import wandb

        if step > self._seen.pictures.get(name, -1):
            pixels = grid.permute(1, 2, 0).cpu().numpy()  # (H, W, C)
            picture = wandb.Image(pixels, caption=history.caption(step))
            self._send({"step": step, name: picture})

    def log_files(self, kind: str, step: int, files: list[Path], *, final: bool) -> None:
        """Upload a version of the artifact `model-<run id>`, `samples-...`; show a report, too."""
        if kind == "report":
            self._send(_report_row(files))
        self._uploads.add(kind, step, files, final=final)

    def close(self, state: str) -> None:
        """Finish the run; W&B shows it as finished, failed or preempted."""
        try:
            if state == "preempted":
                self._run.mark_preempting()
            self._uploads.finish(waiting_time(state))
            self._run.finish(exit_code=0 if state == "done" else 1)
        except Exception:
            session.abandon()
            raise

    def _send(self, row: dict[str, Any]) -> None:
        """Log a row; the first with its number, since offline W&B counts from 0 at each start."""
        with bare_copies():
            if self._seen.rows:
                self._run.log(row, step=self._seen.rows, commit=True)
                self._seen.rows = 0
            else:
                self._run.log(row)

    def _history(self, run_dir: Path) -> history.Seen:
        """The steps of this run that W&B has from earlier starts."""
        if self._run.offline:
            return history.in_files(run_dir)
        seen = history.Seen()
        if self._run.resumed:
            summary = self._run.summary  # it has keys() and get(), but is no mapping
            seen.add({name: summary.get(name) for name in summary.keys()})  # noqa: SIM118
        return seen

    def _catch_up(self, run_dir: Path, start_step: int) -> None:
        """Log the steps before this start that W&B lacks."""
        import wandb

        rows = dict(logged_until(run_dir, start_step))
        pictures = previews.by_step(run_dir)
        shown = self._seen.pictures.get("samples", -1)
        for step in sorted(rows.keys() | {step for step in pictures if step <= start_step}):
            if step in rows:
                self.log(step, rows[step])
            if step in pictures and step > shown:
                image = wandb.Image(str(pictures[step]), caption=history.caption(step))
                self._send({"step": step, "samples": image})
        if not (self._run.offline or self._run.disabled):
            history.mark_synced(run_dir)

    def _location(self, run_dir: Path, obstacle: str | None) -> str | None:
        """The URL of the run, or the command that uploads the offline run."""
        if self._run.disabled:
            return None
        if not self._run.offline:
            return self._run.url
        # A resumed run has several parts; one command uploads all.
        parts = f"{shlex.quote(str(run_dir / 'wandb'))}/offline-run-*"
        because = f" ({obstacle})" if obstacle else ""
        return f"W&B offline{because}; to upload: wandb sync {parts}"


def _display_name(name: str) -> str:
    """A run's own name, in sweeps its overrides, shortened to W&B's limit."""
    return limits.shortened(name if len(name) <= limits.NAME else limits.title_of(name.split(" ")))


def _cut(texts: dict[str, str | None]) -> dict[str, str]:
    """The texts that are too long for the field in which they are shown."""
    return {name: text for name, text in texts.items() if text and len(text) > limits.NAME}


def _report_row(files: Sequence[Path]) -> dict[str, Any]:
    """The row that logs a report's files: `report` and `runs`."""
    import wandb

    by_suffix = {file.suffix: file for file in files}
    shown: dict[str, Any] = {}
    if page := by_suffix.get(".html"):
        shown["report"] = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    if table := by_suffix.get(".csv"):
        head, *lines = csv.reader(table.read_text(encoding="utf-8").splitlines())
        columns: list[str | int] = [*head]
        rows = [list(map(_cell, line)) for line in lines]
        shown["runs"] = wandb.Table(columns=columns, data=rows)
    return shown


def _cell(text: str) -> str | float:
    """A number if possible, so that W&B sorts numerically."""
    try:
        return float(text)
    except ValueError:
        return text
