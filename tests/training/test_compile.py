"""job.compile=true without a compiler, or with one that fails."""

import importlib.util

import pytest
import torch
from support.base import TINY

from ddpm.errors import InputError
from ddpm.runner.distributed import fabric
from ddpm.runner.execution import launch


def test_a_missing_compiler_is_reported_before_a_folder_is_made(run, tmp_path, monkeypatch):
    monkeypatch.setattr(fabric, "_has_cpp_compiler", lambda: False)
    status, out, err = run(*TINY, "job.compile=true", "output_dir=run")
    assert status == 2, out + err
    assert "job.compile" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_gpu_needs_triton(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="Triton"):
        fabric.check_compiler(torch.device("cuda"))
    fabric.check_compiler(torch.device("mps"))


@pytest.mark.slow
def test_a_failing_compiler_is_reported_briefly(run, tmp_path, monkeypatch):
    from torch._inductor import config as inductor  # on demand: it takes seconds

    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'error: broken' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(fabric, "_has_cpp_compiler", lambda: True)
    # monkeypatch would remove the setting at the end: it is no attribute of a module or object.
    with inductor.patch({"cpp.cxx": (None, str(compiler))}):
        status, out, err = run(*TINY, "job.compile=true", "output_dir=run")
    assert status == 2, out + err
    assert "job.compile" in err
    assert len(err.splitlines()) <= 5


def test_an_incomplete_compiled_file_is_named(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "some/cache")
    error = RuntimeError("InductorError: ImportError: some/cache/ab/x.so: file too short")
    message = launch._not_compiled(error)
    assert "Remove some/cache " in message
    assert len(message.splitlines()) <= 3
