"""W&B offline: the parts of a resumed run, and the command that uploads them."""

import re
import subprocess
import sys

import pytest
from support.trackers import GRID
from support.wandb_reader import read_run, run_files
from support.wandb_runs import (
    finished,
    killed,
    log_all,
    not_logged_in,
    run_dir,
    server,
    wandb_run,
    write_metrics,
)

from ddpm.trackers.wandb_client import history

__all__ = ["not_logged_in", "run_dir", "server"]


def sync(tracker):
    """Run the printed command; the shell expands its `*`."""
    command = tracker.where.partition("to upload: ")[2]
    assert re.fullmatch(r"wandb sync \S+", command)
    command = command.replace("wandb", f"{sys.executable} -m wandb", 1)
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def in_three_parts(run_dir):
    """A run that is killed, resumed, fails and is resumed: its last tracker."""

    def begin():
        tracker = wandb_run(run_dir, mode="offline")
        log_all(tracker, (10, 20))
        tracker.log_image(20, "samples", GRID)
        log_all(tracker, (30,))

    def written():
        return [row for path in run_files(run_dir) for row in read_run(path).rows][3:]

    killed(begin, written)
    write_metrics(run_dir, (10, 20))
    for start, steps, state in ((20, (30, 40, 50), "failed"), (40, (50, 60), "done")):
        write_metrics(run_dir, range(10, start + 10, 10))
        tracker = wandb_run(run_dir, mode="offline", start_step=start)
        tracker.log_image(20, "samples", GRID)
        log_all(tracker, steps)
        if state == "done":
            (run_dir / "step-60.pt").write_bytes(b"weights")
            tracker.log_files("model", 60, [run_dir / "step-60.pt"], final=True)
        tracker.close(state)
    return tracker


@pytest.mark.slow
def test_offline_parts_hold_each_step_once_and_one_command_uploads_them(run_dir, server):
    tracker = in_three_parts(run_dir)
    rows = [row for part in finished(run_dir) for row in part.rows]
    assert [row["step"] for row in rows if "train/loss" in row] == [10, 20, 30, 40, 50, 60]
    assert [row["step"] for row in rows if "samples/path" in row] == [20]
    assert [row["_step"] for row in rows] == list(range(7)), "to W&B they are rows of one run"
    sync(tracker)
    (run,) = server.runs.values()
    assert run.steps == [10, 20, 30, 40, 50, 60]
    assert run.exit_code == 0
    assert [(a.name, a.run, sorted(a.aliases)) for a in server.artifacts] == [
        ("model-a1b2c3", "a1b2c3", ["best", "latest", "step-60"])
    ]
    assert b"weights" in server.blobs.values()


def test_synced_run_can_be_resumed_offline(run_dir, server):
    for start, steps in ((0, (10, 20)), (20, (30, 40))):
        tracker = wandb_run(run_dir, mode="offline", start_step=start)
        log_all(tracker, steps)
        tracker.close("done")
        sync(tracker)
        write_metrics(run_dir, steps)
    assert server.runs["a1b2c3"].steps == [10, 20, 30, 40]


def test_rows_lost_by_a_kill_are_written_into_the_next_part(run_dir):
    tracker = wandb_run(run_dir, mode="offline")
    log_all(tracker, (10, 20, 30, 40))
    tracker.close("failed")
    finished(run_dir)
    (path,) = run_files(run_dir)
    numbers = [number for number, _ in history.read_rows(path)]
    data = path.read_bytes()
    while len(list(history.read_rows(path))) > 2:  # the last bytes never reached the disk
        data = data[:-50]
        path.write_bytes(data)
    write_metrics(run_dir, (10, 20, 30))
    tracker = wandb_run(run_dir, mode="offline", start_step=30)
    log_all(tracker, (40, 50))
    tracker.close("done")
    first, second = finished(run_dir)
    assert numbers == [0, 1, 2, 3]
    assert [row["step"] for row in first.rows + second.rows] == [10, 20, 30, 40, 50]


@pytest.mark.parametrize("damage", [b"", b":W&B", b"\0" * 100, b":W&B\xe1\xbe\0" + b"\xff" * 50])
def test_a_damaged_part_counts_as_empty(damage, run_dir):
    part = run_dir / "wandb" / "offline-run-x" / "run-x.wandb"
    part.parent.mkdir(parents=True)
    part.write_bytes(damage)
    assert history.in_files(run_dir) == history.Seen()
