"""Helpers of the tests of W&B: no login, a small server, a tracker."""

import json
import os
import signal
import sys
import time

import pytest
from support.trackers import HPARAMS, info, knobs
from support.wandb_reader import read_run, run_files
from support.wandb_server import Server

from ddpm.trackers.wandb import Wandb


@pytest.fixture(autouse=True)
def not_logged_in(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    forget()  # it reads the environment once
    yield
    forget()


def forget():
    """End W&B's process, which writes all it has; the next run starts one anew."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def run_dir(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def server(monkeypatch):
    """A server with a login; at the end, it must have known every request."""
    with Server() as started:
        for name, value in started.environment.items():
            monkeypatch.setenv(name, value)
        yield started
        forget()
        assert started.unknown == []


def wandb_run(run_dir, *, run=None, start_step=0, hparams=HPARAMS, **changes):
    return Wandb(
        **knobs("wandb", **changes),
        run_dir=run_dir,
        run=run or info(),
        hparams=hparams,
        start_step=start_step,
    )


def finished(run_dir):
    """The W&B runs of a folder, read when W&B's process has ended and written all it had."""
    forget()
    return [read_run(path) for path in run_files(run_dir)]


def write_metrics(run_dir, steps):
    """The record that the local tracker leaves, up to a checkpoint."""
    lines = [json.dumps({"step": step, "train/loss": 1 / step}) for step in steps]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def log_all(tracker, steps):
    for step in steps:
        tracker.log(step, {"train/loss": 1 / step})


def killed(work, done):
    """Call `work` in a forked process, and kill it when `done()` is true."""
    forget()
    child = os.fork()
    if not child:
        try:
            work()
            time.sleep(60)
        finally:
            os._exit(1)
    try:
        until(done)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def until(done, seconds=30):
    """Wait until `done()` is true."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


__all__ = ["finished", "not_logged_in", "run_dir", "server"]
