"""MLflow: a server or a database file. mlflow is imported only when a run is opened."""

import logging
import os
import re
import shlex
import time
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ddpm.runner.safe_io.tree import flatten
from ddpm.trackers.base import RunInfo, logged_until

ENDS = {"done": "FINISHED", "failed": "FAILED"}  # others, of a run that was stopped: KILLED
MAX_VALUE = 6000  # characters of a parameter
AT_ONCE = 100  # parameters in a request
_STEP = re.compile(r"[+%]step[+%](\d+)[+%]")  # in the file names of pictures


class MLflow:
    """A run in MLflow. A resumed run goes on in the same one, found by its `run_id` in a tag.

    Steps that MLflow has are not logged again, for it would keep both; earlier steps that it lacks
    are taken from metrics.jsonl.
    """

    package: ClassVar[str] = "mlflow"

    def __init__(
        self,
        *,
        tracking_uri: str | None,
        experiment: str,
        artifacts: str,
        run_dir: Path,
        run: RunInfo,
        hparams: dict[str, Any],
        start_step: int,
    ) -> None:
        from mlflow import MlflowClient

        for library in ("mlflow", "alembic"):  # which announce each step of making a database
            logging.getLogger(library).setLevel(logging.WARNING)
        database = f"sqlite:///{Path('mlflow.db').absolute()}"
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or database
        self._client, self._artifacts = MlflowClient(uri), artifacts
        found = self._client.get_experiment_by_name(experiment)
        home = found.experiment_id if found else self._client.create_experiment(experiment)
        runs = self._client.search_runs([home], f"tags.`ddpm.run_id` = '{run.run_id}'")
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._new(home, run, hparams)
        self._client.log_dict(self._id, hparams, "config.yaml")
        self._step, self._pictured = self._seen()
        for step, metrics in logged_until(run_dir, start_step):
            self.log(step, metrics)
        web = f"{uri}/#/experiments/{home}/runs/{self._id}"
        ui = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
        self.where: str | None = web if uri.startswith("http") else ui

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log the metrics of a step, unless MLflow has them."""
        from mlflow.entities import Metric

        if step > self._step:
            now = time.time_ns() // 1_000_000
            row = [Metric(name, float(value), now, step) for name, value in metrics.items()]
            self._client.log_batch(self._id, metrics=row)
            self._step = step

    def log_image(self, step: int, name: str, grid: Tensor) -> None:
        """Log an image, uint8 (C, H, W)."""
        if step > self._pictured.get(name, -1):
            pixels = grid.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()  # (H, W, 3)
            self._client.log_image(self._id, pixels, key=name, step=step)
            self._pictured[name] = step

    def log_files(self, kind: str, step: int, files: list[Path], *, final: bool) -> None:
        """Store files as artifacts in a folder named by their kind."""
        if self._artifacts == "all" or (self._artifacts == "last" and final):
            for file in files:
                self._client.log_artifact(self._id, str(file), kind)

    def close(self, state: str) -> None:
        """End the run; MLflow shows it as finished, failed or killed."""
        self._client.set_terminated(self._id, ENDS.get(state, "KILLED"))

    def _new(self, home: str, run: RunInfo, hparams: dict[str, Any]) -> str:
        """Create the run, with the configuration as its parameters, which never change."""
        from mlflow.entities import Param

        tags = {
            "ddpm.run_id": run.run_id,
            "ddpm.job": run.job_type,
            "ddpm.tags": ",".join(run.tags),
        }
        tags |= {"ddpm.group": run.group} if run.group else {}
        new = self._client.create_run(home, run_name=run.title or run.name, tags=tags)
        params = [Param(k, str(v)[:MAX_VALUE]) for k, v in flatten(hparams)]
        for first in range(0, len(params), AT_ONCE):
            self._client.log_batch(new.info.run_id, params=params[first : first + AT_ONCE])
        return new.info.run_id

    def _seen(self) -> tuple[int, dict[str, int]]:
        """The last step whose metrics MLflow has, and that of each kind of picture."""
        names = self._client.get_run(self._id).data.metrics
        logged = [self._client.get_metric_history(self._id, name) for name in names]
        pictures: dict[str, int] = {}
        for file in self._client.list_artifacts(self._id, "images"):
            name, *rest = _STEP.split(Path(file.path).name)
            if rest:
                pictures[name] = max(int(rest[0]), pictures.get(name, -1))
        return max((m.step for metrics in logged for m in metrics), default=-1), pictures
