"""The files in every run's folder: metrics.jsonl, sample grids, loss.png."""

import io
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ddpm.images import save_png
from ddpm.runner.runs import previews
from ddpm.runner.runs.metrics_log import FILE, LOSS, is_number, read_metrics
from ddpm.runner.safe_io import atomic, listing
from ddpm.trackers.base import RunInfo
from ddpm.trackers.loss_curve import smooth

logger = logging.getLogger(__name__)


class Local:
    """The authoritative record: needs no account, and survives a kill after any line.

    A full disk is reported once; lines that could not be written are written with later ones.
    """

    where: str | None = None

    def __init__(self, *, run_dir: Path, run: RunInfo, start_step: int) -> None:
        self._run_dir, self._run = Path(run_dir), run
        self._metrics = self._run_dir / FILE
        rows = _rewind(self._metrics, start_step)
        self._losses = [(row["step"], row[LOSS]) for row in rows if is_number(row.get(LOSS))]
        self._drawn = 0  # number of losses in loss.png; drawing takes longer than most steps
        self._unwritten = b""
        self._warned = False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line. NaN and infinity, which JSON lacks, become null."""
        row = {"step": step} | {name: _finite(value) for name, value in metrics.items()}
        self._unwritten += json.dumps(row, allow_nan=False).encode() + b"\n"
        if is_number(row.get(LOSS)):
            self._losses.append((step, row[LOSS]))
        with self._spare():
            _append(self._metrics, self._unwritten)
            self._unwritten = b""

    def log_image(self, step: int, name: str, grid: Tensor) -> None:
        """Write `<name>/step-000500.png` and redraw the loss; sampling runs write `<name>.png`."""
        file = self._run_dir / f"{name}.png"
        if self._run.trains:
            file = previews.file(self._run_dir, step, name)
        with self._spare():
            save_png(grid, file)
        self._draw_loss()

    def log_files(self, kind: str, step: int, files: list[Path], *, final: bool) -> None:
        """Do nothing: the files are in the run's folder."""

    def close(self, state: str) -> None:
        """Draw the last loss curve."""
        self._draw_loss()

    def _draw_loss(self) -> None:
        if len(self._losses) > self._drawn:
            self._drawn = len(self._losses)
            with self._spare():
                curve = loss_curve(*zip(*self._losses, strict=True))
                atomic.write(self._run_dir / "loss.png", curve, durable=True)

    @contextmanager
    def _spare(self) -> Iterator[None]:
        """A file that cannot be written does not end the run."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                logger.warning("Cannot write to %s, the run goes on: %s", self._run_dir, error)
            self._warned = True


def loss_curve(steps: Sequence[int], losses: Sequence[float]) -> bytes:
    """A PNG of the loss over the steps, as logged (light) and smoothed, on a log axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""  # 0.06, not 6e-02

    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    style: dict[str, Any] = {"color": "tab:blue", "marker": "." if len(steps) == 1 else None}
    axes.plot(steps, losses, **style, alpha=0.3, linewidth=1, label="as logged")
    if min(losses) > 0:  # on a log axis, average the logarithm
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(Plain(minor_thresholds=(1.5, 0.5)))
        smoothed = np.exp(smooth(np.log(losses)))
    else:
        smoothed = smooth(losses)
    axes.plot(steps, smoothed, **style, linewidth=2, label="smoothed")
    axes.grid(which="both", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _rewind(path: Path, start_step: int) -> list[dict[str, Any]]:
    """Remove the rows that a run resumed at `start_step` will write again; return the others."""
    if not listing.exists(path):
        return []
    rows = [row for row in read_metrics(path) if row["step"] <= start_step]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    if data != path.read_bytes():
        atomic.write(path, data, durable=True)
    return rows


def _append(path: Path, data: bytes) -> None:
    """Append all of `data`, or nothing if the disk is full."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    size = os.fstat(file).st_size
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError:
        os.ftruncate(file, size)
        raise
    finally:
        os.close(file)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
