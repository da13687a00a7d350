"""job.compile=auto: when a run is compiled, also after a resume."""

import shutil
from pathlib import Path

import pytest
import torch
from support.base import TINY

from ddpm.models import gpu_kernels
from ddpm.training import compiling
from ddpm.training.compiling import Compilation, may_compile, pays_off


def test_compiling_pays_off_in_long_runs_on_a_gpu(monkeypatch):
    assert may_compile(torch.device("cuda"))
    assert not may_compile(torch.device("cpu"))
    monkeypatch.setattr(compiling, "has_gpu_compiler", lambda: True)
    assert pays_off(3600.0)
    assert not pays_off(60.0)
    monkeypatch.setattr(compiling, "has_gpu_compiler", lambda: False)
    assert not pays_off(3600.0)


def test_requirements_of_compiling_on_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu_kernels.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: name == "gcc" or None)
    assert gpu_kernels.has_gpu_compiler()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not gpu_kernels.has_gpu_compiler()


@pytest.fixture
def compiled(monkeypatch):
    """Lets runs compile on a CPU, with a stub for the compiler that records the steps before."""
    steps = []
    real = Compilation.after_step

    def after_step(self, run, done, seconds_left, *networks):
        compiled = real(self, run, done, seconds_left, *networks)
        if compiled:
            steps.append(done)
        return compiled

    monkeypatch.setattr(Compilation, "after_step", after_step)
    monkeypatch.setattr(compiling, "may_compile", lambda device: True)
    monkeypatch.setattr(compiling, "has_gpu_compiler", lambda: True)
    monkeypatch.setattr(compiling, "pays_off", lambda seconds_left: True)
    calls = []
    monkeypatch.setattr(compiling, "compile_networks", lambda *n, fallback: calls.append(fallback))
    monkeypatch.setattr("ddpm.training.time_left.STEPS", 2)
    return steps, calls


WORDS = [*TINY, "job.max_steps=12", "job.compile=auto", "output_dir=run"]


@pytest.mark.slow
def test_a_run_is_compiled_once_and_from_the_start_when_resumed(run, compiled):
    steps, calls = compiled
    status, out, err = run(*WORDS)
    assert status == 0, err
    assert (steps, calls) == ([4], [True])
    assert out.count("with the next step") == 1
    for total in (14, 16):
        assert run("resume=run", f"job.max_steps={total}")[0] == 0
    assert (steps, calls) == ([4], [True] * 3)


def test_a_run_stopped_before_compiling_compiles_after_the_same_step(run, compiled):
    steps, calls = compiled
    assert run(*WORDS, "job.max_steps=5", "job.keep_checkpoints=-1")[0] == 0
    for file in Path("run/checkpoints").glob("step-000000[45].pt"):
        file.unlink()
    status, _, err = run("resume=run/checkpoints/step-0000002.pt", "job.max_steps=12")
    assert status == 0, err
    assert (steps, calls) == ([4, 4], [True, True])


@pytest.mark.slow
def test_a_run_that_was_not_compiled_never_is(run, compiled, monkeypatch):
    steps, calls = compiled
    monkeypatch.setattr(compiling, "pays_off", lambda seconds_left: False)
    assert run(*WORDS)[0] == 0
    monkeypatch.setattr(compiling, "pays_off", lambda seconds_left: True)
    assert run("resume=run", "job.max_steps=30")[0] == 0
    assert (steps, calls) == ([], [])


def test_a_network_with_kernels_of_its_own_is_not_compiled(run, compiled, monkeypatch):
    steps, calls = compiled
    monkeypatch.setattr(compiling, "runs_own_kernels", lambda network, device: True)
    assert run(*WORDS)[0] == 0
    assert (steps, calls) == ([], [])


def test_without_a_gpu_nothing_is_compiled(run, compiled, monkeypatch):
    steps, calls = compiled
    assert run(*WORDS)[0] == 0
    monkeypatch.setattr(compiling, "may_compile", lambda device: False)
    assert run("resume=run", "job.max_steps=14")[0] == 0
    assert (steps, calls) == ([4], [True])


def test_a_wrong_value_is_refused(run):
    status, _, err = run(*TINY, "job.compile=maybe")
    assert status == 2
    assert err.splitlines() == ["job.compile=maybe: must be true, false or auto."]
