"""Runs in a Python without its Linux-only functions: a stand-in for macOS."""

import os
import subprocess
import sys

import pytest
from support.base import ROOT, TINY
from support.runs import assert_equal_state, state_of

pytestmark = pytest.mark.slow  # each command starts an interpreter that imports torch

FOLDER = ROOT / "tests" / "support" / "without_linux"


@pytest.fixture
def command(tmp_path, data_dir):
    def call(*arguments: str, linux: bool = False) -> str:
        """The standard output of run.py."""
        env = os.environ | {"DDPM_DATA": str(data_dir)}
        if not linux:
            env["PYTHONPATH"] = str(FOLDER)
        words = [sys.executable, str(ROOT / "run.py"), *arguments]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return call


def test_a_run_with_readers_is_resumed_to_the_same_weights_and_drawn_from(command, tmp_path):
    command(*TINY, "output_dir=whole", linux=True)
    command(*TINY, "output_dir=run", "job.max_steps=4", "job.num_workers=1")
    command("resume=run", "job.max_steps=6")
    assert (tmp_path / "run" / "samples" / "step-000006.png").is_file()
    assert_equal_state(state_of(tmp_path / "whole", 6), state_of(tmp_path / "run", 6))
    command("job=sample", "checkpoint=run", "job.num_samples=2", "output_dir=drawn")
    assert (tmp_path / "drawn" / "grid.png").is_file()


@pytest.mark.parametrize("launcher", ["serial", "slots"])
def test_a_sweep_runs_and_is_reported(launcher, command, tmp_path):
    sweep = ["-m", "sweep=s", f"hydra/launcher={launcher}", "seed=1,2"]
    assert "2 done" in command(*sweep, *TINY)
    command("job=report", "sweep=s")
    assert (tmp_path / "outputs" / "sweep" / "s" / "report.html").is_file()
