"""Which device a run takes on a machine with an Apple GPU, which the tests pretend."""

import pytest
import torch

from ddpm.runner.distributed import fabric

HARDWARE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "auto"}


@pytest.fixture
def apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_auto_takes_no_apple_gpu(apple_gpu):
    assert fabric.fabric(accelerator="auto", **HARDWARE).device.type == "cpu"


def test_an_apple_gpu_is_taken_by_name(apple_gpu, monkeypatch):
    asked = {}
    monkeypatch.setattr(fabric, "Fabric", lambda **options: asked.update(options))
    fabric.fabric(accelerator="mps", **HARDWARE)
    assert (asked["accelerator"], asked["precision"]) == ("mps", "32-true")


def test_a_learned_schedule_is_refused_on_an_apple_gpu(apple_gpu, run, tmp_path):
    status, _, err = run("schedule=learned", "hardware.accelerator=mps", "output_dir=run")
    assert status == 2
    (line,) = err.splitlines()
    assert line.startswith("hardware.accelerator=mps: schedule=learned needs float64")
    assert not (tmp_path / "run").exists()
