"""TensorBoard: event files in the run's folder."""

import json
import shlex
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.trackers.base import RunInfo


class TensorBoard:
    """Writes to `<run folder>/tensorboard`. After a resume, repeated steps replace older ones."""

    def __init__(
        self,
        *,
        flush_secs: int,
        run_dir: Path,
        run: RunInfo,
        hparams: dict[str, Any],
        start_step: int,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(run_dir) / "tensorboard"
        self.where: str | None = f"tensorboard --logdir {shlex.quote(str(folder))}"
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1, flush_secs=flush_secs)
        text = json.dumps({"name": run.name, **hparams}, indent=2, default=str)
        self._writer.add_text("config", f"```json\n{text}\n```", start_step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one scalar for each metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_image(self, step: int, name: str, grid: Tensor) -> None:
        """Write an image, uint8 (C, H, W)."""
        self._writer.add_image(name, grid, step)

    def log_files(self, kind: str, step: int, files: list[Path], *, final: bool) -> None:
        """Do nothing: TensorBoard stores no files."""

    def close(self, state: str) -> None:
        """Flush and close the event file; TensorBoard has no end state."""
        self._writer.close()
