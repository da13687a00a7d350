"""The files of the local tracker: no line is lost or repeated."""

import json
import os
import resource

import numpy as np
import pytest
from PIL import Image
from support.trackers import GRID, info, own_warnings

from ddpm.runner.runs.metrics_log import read_metrics
from ddpm.trackers.local import Local, smooth


def local(run_dir, start_step=0, **changes):
    return Local(run_dir=run_dir, run=info(**changes), start_step=start_step)


def test_each_line_is_written_immediately_as_strict_json(tmp_path):
    tracker = local(tmp_path)
    tracker.log(50, {"train/loss": 0.5, "train/lr": 1e-4})
    tracker.log(100, {"train/loss": float("nan"), "train/lr": float("inf")})

    def refuse(constant):
        raise AssertionError(constant)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        {"step": 50, "train/loss": 0.5, "train/lr": 1e-4},
        {"step": 100, "train/loss": None, "train/lr": None},
    ]


def test_a_resumed_run_has_every_step_once(tmp_path):
    tracker = local(tmp_path)
    for step in range(10, 60, 10):
        tracker.log(step, {"train/loss": 1 / step})
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 60, "train/lo')
    assert [row["step"] for row in read_metrics(path)] == [10, 20, 30, 40, 50]

    tracker = local(tmp_path, start_step=30)
    assert [row["step"] for row in read_metrics(path)] == [10, 20, 30]
    tracker.log(40, {"train/loss": 7.0})
    assert [row["step"] for row in read_metrics(path)] == [10, 20, 30, 40]
    assert read_metrics(path)[-1]["train/loss"] == 7.0
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_failed_rewrite_on_resume_keeps_the_old_file(tmp_path, monkeypatch):
    local(tmp_path).log(10, {"train/loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def fail(*_):
        raise OSError("no room")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no room"):
        local(tmp_path, start_step=5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_full_disk_warns_once_and_missing_lines_are_written_later(tmp_path, caplog):
    tracker = local(tmp_path)
    tracker.log(1, {"train/loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))  # SIGXFSZ is ignored by Python
    try:
        for step in (2, 3, 4):
            tracker.log(step, {"train/loss": 1.0})
        tracker.log_image(4, "samples", GRID)
        during = read_metrics(tmp_path / "metrics.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [row["step"] for row in during] == [1]
    (warning,) = own_warnings(caplog)
    assert "the run goes on" in warning
    tracker.log(5, {"train/loss": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_image_grids_and_loss_curve_are_written(tmp_path):
    tracker = local(tmp_path)
    for step in range(1, 60):
        tracker.log(step, {"train/loss": 1 / step if step != 7 else float("nan")})
    tracker.log_image(500, "samples", GRID)
    saved = np.asarray(Image.open(tmp_path / "samples" / "step-000500.png"))
    assert np.array_equal(saved, GRID.permute(1, 2, 0).numpy())
    curve = np.asarray(Image.open(tmp_path / "loss.png").convert("L"))
    assert curve.std() > 5

    (tmp_path / "loss.png").unlink()
    local(tmp_path, start_step=30).close("done")  # a resumed run draws the earlier losses
    assert (tmp_path / "loss.png").exists()


def test_loss_curve_of_one_point_and_of_negative_losses_is_drawn(tmp_path):
    for losses in ([0.5], [-1.0, 0.0, 1.0]):
        tracker = local(tmp_path)
        for step, loss in enumerate(losses):
            tracker.log(step, {"train/loss": loss})
        tracker.close("done")
        assert np.asarray(Image.open(tmp_path / "loss.png").convert("L")).std() > 1


def test_sampling_run_writes_its_grid_and_no_metrics(tmp_path):
    tracker = local(tmp_path, trains=False)
    tracker.log_image(500, "grid", GRID[:1])
    tracker.close("done")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_smoothing_keeps_a_straight_line():
    line = np.linspace(3, -1, 200)
    assert np.allclose(smooth(line), line)
