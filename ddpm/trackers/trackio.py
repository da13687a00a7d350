"""Trackio: a database file of each project. trackio is imported only when a run is opened."""

import contextlib
import io
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ddpm.runner.safe_io.tree import flatten
from ddpm.trackers.base import RunInfo, logged_until


class Trackio:
    """A run in the local store of Trackio, where a resumed run goes on under the same `run_id`.

    Steps that it has are not logged again, for it would keep both; earlier steps that it lacks are
    taken from metrics.jsonl.
    """

    package: ClassVar[str] = "trackio"

    def __init__(
        self,
        *,
        project: str,
        artifacts: str,
        run_dir: Path,
        run: RunInfo,
        hparams: dict[str, Any],
        start_step: int,
    ) -> None:
        import trackio

        trackio.SQLiteStorage.validate_project_name(project)
        name = (run.title or run.name).replace("/", "-")  # pictures are in a folder of this name
        self._artifacts, self._run_id = artifacts, run.run_id
        rows = trackio.SQLiteStorage.get_logs(project, name, run_id=run.run_id)
        self._last: dict[str, int] = {}  # the step of the last value, or picture, of each name
        for row in rows:
            self._remember(row["step"], row)
        # Not trackio.init: that ends a run which a notebook may have open, and starts a server.
        self._run = trackio.Run(
            None,
            project,
            None,
            name=name,
            run_id=run.run_id,
            group=run.group,
            config={"job_type": run.job_type, "tags": run.tags, **dict(flatten(hparams))},
        )
        for step, metrics in logged_until(run_dir, start_step):
            self.log(step, metrics)
        self.where: str | None = f"trackio show --project {shlex.quote(project)}"

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log the metrics of a step, except those that Trackio has."""
        self._send(step, metrics)

    def log_image(self, step: int, name: str, grid: Tensor) -> None:
        """Log an image, uint8 (C, H, W)."""
        import trackio

        pixels = grid.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()  # (H, W, 3)
        self._send(step, {name: trackio.Image(pixels, caption=f"step {step}")})

    def log_files(self, kind: str, step: int, files: list[Path], *, final: bool) -> None:
        """Store files as a version of the artifact `model-<run id>`, `samples-<run id>`, ..."""
        import trackio

        if self._artifacts == "all" or (self._artifacts == "last" and final):
            artifact = trackio.Artifact(f"{kind}-{self._run_id}", kind)
            for file in files:
                artifact.add_file(file)
            self._run.log_artifact(artifact, aliases=[f"step-{step}"])

    def close(self, state: str) -> None:
        """Write what is left; Trackio has no end state."""
        with contextlib.redirect_stdout(io.StringIO()):  # it says so
            self._run.finish()

    def _send(self, step: int, row: dict[str, Any]) -> None:
        new = {name: value for name, value in row.items() if step > self._last.get(name, -1)}
        if new:
            self._run.log(new, step=step)
            self._remember(step, new)

    def _remember(self, step: int, names: Iterable[str]) -> None:
        self._last |= {name: max(step, self._last.get(name, -1)) for name in names}
