"""What all tests stand on: one thread, no accounts, no network, and a run that takes seconds."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # two slow each other down tenfold beside another program
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop("HYDRA_FULL_ERROR", None)

import pytest

ROOT = Path(__file__).parent.parent

# A network of some thousand weights and a few steps: enough for everything but good pictures.
TINY = [
    "model=convnet",
    "hardware=cpu",
    "tracker=local",
    "sampler=ddim",
    "sampler.steps=2",
    "optimizer.lr=2e-4",
    "job.max_steps=6",
    "job.batch_size=8",
    "job.log_every=1",
    "job.save_every=2",
    "job.num_samples=4",
]


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Call run.py's entry in this process, in an empty folder: (exit status, stdout, stderr)."""
    from hydra.core.global_hydra import GlobalHydra

    from ddpm import cli
    from ddpm.sweeps import record

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "run.py"), *arguments])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(cli, "_single", {})
        record.forget()
        GlobalHydra.instance().clear()
        capfd.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        out, err = capfd.readouterr()
        return status, out, err

    return call


@pytest.fixture
def tiny(run, tmp_path):
    """A finished tiny run: its folder."""
    status, out, err = run(*TINY, "output_dir=run")
    assert status == 0, out + err
    return tmp_path / "run"
