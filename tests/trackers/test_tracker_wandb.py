"""W&B: offline runs read back record by record, and failures that do not end a run."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from support.trackers import GRID, HPARAMS, info, own_warnings
from support.wandb_reader import read_run, run_files
from support.wandb_runs import finished, not_logged_in, run_dir, wandb_run

from ddpm.errors import InputError
from ddpm.trackers.multi import Trackers

__all__ = ["not_logged_in", "run_dir"]


@pytest.mark.slow
def test_offline_run_contains_everything_logged(run_dir):
    tracker = wandb_run(run_dir, mode="offline", tags=["mine", "unet"], notes="a note")
    tracker.log(50, {"train/loss": 0.5, "train/lr": 1e-4})
    tracker.log_image(50, "samples", GRID)
    tracker.log_image(50, "grey", GRID[:1])
    tracker.log(100, {"train/loss": 0.25})
    tracker.close("done")

    (run,) = finished(run_dir)
    assert (run.run.run_id, run.run.project, run.run.run_group) == ("a1b2c3", "ddpm", "sweep")
    assert (run.run.display_name, run.run.job_type) == ("unet-digits", "train")
    assert list(run.run.tags) == ["unet", "mine"]
    assert run.run.notes == "a note"
    assert HPARAMS.items() <= run.config.items()
    assert run.step_metrics == {"*": "step"}
    assert [(row["step"], row.get("train/loss")) for row in run.rows] == [
        (50, 0.5),
        (50, None),
        (50, None),
        (100, 0.25),
    ]
    assert run.exit_code == 0
    assert not run.preempting
    for row, pixels in ((run.rows[1], GRID.permute(1, 2, 0)), (run.rows[2], GRID[0])):
        name = "samples" if "samples/path" in row else "grey"
        saved = np.asarray(Image.open(run_files(run_dir)[0].parent / "files" / row[f"{name}/path"]))
        assert saved.std() > 0
        assert np.array_equal(saved, pixels.numpy())
    assert tracker.where == f"W&B offline; to upload: wandb sync {run_dir}/wandb/offline-run-*"


def test_runs_of_one_process_are_separate_and_record_their_end_state(run_dir, tmp_path):
    for number, state in enumerate(("failed", "preempted")):
        folder = tmp_path / f"job-{number}"
        tracker = wandb_run(folder, run=info(run_id=f"id{number}", name=f"job {number}"))
        tracker.log(number, {"train/loss": number})
        tracker.close(state)
    for number in range(2):
        (run,) = finished(tmp_path / f"job-{number}")
        assert (run.run.run_id, run.run.display_name) == (f"id{number}", f"job {number}")
        assert [row["step"] for row in run.rows] == [number]
        assert (run.exit_code, run.preempting) == (1, number == 1)


def test_rows_of_an_unclosed_run_are_on_disk(run_dir):
    tracker = wandb_run(run_dir, mode="offline")
    tracker.log(1, {"train/loss": 0.5})
    (path,) = run_files(run_dir)
    deadline = time.monotonic() + 60
    while not read_run(path).rows and time.monotonic() < deadline:
        time.sleep(0.1)
    assert read_run(path).rows[0]["step"] == 1
    tracker.close("done")


def test_run_without_login_is_offline_without_a_request_and_prints_nothing(
    run_dir, monkeypatch, capfd
):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        tracker = wandb_run(run_dir)
        assert tracker.where.startswith("W&B offline (not logged in); to upload: wandb sync ")
        tracker.close("done")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # no request has come
            server.accept()
    assert capfd.readouterr() == ("", "")


class Unauthorized(http.server.BaseHTTPRequestHandler):
    """Answers every request with 401."""

    def do_GET(self):
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(params=["refuses", "hangs", "answers 401"])
def base_url(request):
    if request.param == "answers 401":
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unauthorized) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "hangs":
            listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_unusable_server_makes_the_run_offline(run_dir, base_url, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", base_url)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    tracker = wandb_run(run_dir)
    assert tracker.where.startswith("W&B offline (")
    assert "not logged in" not in tracker.where
    tracker.log(1, {"train/loss": 0.5})
    tracker.close("done")
    (run,) = [run for run in finished(run_dir) if run.rows]  # W&B may have begun an empty one
    assert (run.run.run_id, run.rows[0]["step"], run.exit_code) == ("a1b2c3", 1, 0)


def test_invalid_modes_are_refused_and_disabled_writes_nothing(run_dir, monkeypatch):
    with pytest.raises(InputError, match=r"tracker\.wandb\.mode=ofline: .*online, offline, disab"):
        wandb_run(run_dir, mode="ofline")
    with pytest.raises(InputError, match="cannot be online: not logged in"):
        wandb_run(run_dir, mode="online")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(InputError, match="cannot be online: "):
        wandb_run(run_dir, mode="online")
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(InputError, match="WANDB_MODE=sometimes"):
        wandb_run(run_dir)
    assert list(run_dir.iterdir()) == []
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = wandb_run(run_dir)
    tracker.log(1, {"train/loss": 1.0})
    tracker.log_image(1, "samples", GRID)
    tracker.close("done")
    assert tracker.where is None
    assert list(run_dir.rglob("*.wandb")) == []


def test_api_key_and_command_line_are_not_written_to_files(run_dir, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secretkey" * 5)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "argv", ["run.py", "seed=secretargument"])
    tracker = wandb_run(run_dir)
    tracker.log(1, {"train/loss": 1.0})
    tracker.close("done")
    (run,) = finished(run_dir)
    assert len(run.rows) == 1
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert not [path for path in files if b"secret" in path.read_bytes()]


def test_killed_wandb_process_switches_off_only_its_own_tracker(run_dir, tmp_path, caplog):
    trackers = Trackers([wandb_run(run_dir, mode="offline")])
    children = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], capture_output=True, text=True
    ).stdout.splitlines()
    for pid in [int(line.split()[0]) for line in children if "wandb-core" in line]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with trackers:
        deadline = time.monotonic() + 60
        while not own_warnings(caplog) and time.monotonic() < deadline:
            trackers.log(1, {"train/loss": 1.0})
    (warning,) = own_warnings(caplog)
    assert "switched off" in warning

    tracker = wandb_run(tmp_path / "next", mode="offline")
    tracker.log(1, {"train/loss": 1.0})
    tracker.close("done")
    (run,) = finished(tmp_path / "next")
    assert (run.exit_code, len(run.rows)) == (0, 1)
