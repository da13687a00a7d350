"""job.compile=auto: when a run is compiled, and that it stays so."""

import torch
from conftest import TINY

from ddpm.jobs import compiling, loop
from ddpm.jobs.compiling import pays

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_only_a_long_run_on_a_gpu_pays_for_compiling(monkeypatch):
    monkeypatch.setattr(compiling, "can_compile", lambda: True)
    assert pays(CUDA, 3600.0)
    assert not pays(CUDA, 60.0)
    assert not pays(CPU, 1e6)
    monkeypatch.setattr(compiling, "can_compile", lambda: False)
    assert not pays(CUDA, 3600.0)


def test_what_compiling_on_a_gpu_needs(monkeypatch):
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name == "gcc" or None)
    assert compiling.can_compile()
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert not compiling.can_compile()


def test_a_run_that_pays_is_compiled_once_and_again_when_it_goes_on(run, monkeypatch):
    """The compiler is a stand-in that counts: what it does is PyTorch's affair."""
    calls = []
    monkeypatch.setattr(loop, "pays", lambda device, seconds_left: True)
    monkeypatch.setattr(loop, "compile_networks", lambda *n, falls_back: calls.append(falls_back))
    monkeypatch.setattr("ddpm.jobs.outlook.STEPS", 2)
    words = [*TINY, "job.max_steps=12", "job.compile=auto"]
    status, out, err = run(*words, "output_dir=run")
    assert status == 0, err
    assert calls == [True]
    assert out.count("compile  took") == 1
    monkeypatch.setattr(loop, "pays", lambda device, seconds_left: False)
    status, out, err = run("resume=run", "job.max_steps=14")
    assert status == 0, err
    assert calls == [True, True]
    assert run("resume=run", "job.max_steps=16")[0] == 0
    assert calls == [True, True, True]
    calls.clear()
    assert run(*words, "output_dir=other")[0] == 0
    assert calls == []


def test_a_wrong_value_is_refused(run):
    status, _, err = run(*TINY, "job.compile=maybe")
    assert status == 2
    assert err.splitlines() == [
        "job.compile=maybe: must be true, false or auto. Did you mean `true`?"
    ] or err.startswith("job.compile=maybe: must be true, false or auto")
