"""Kernels in C: when they are compiled, and what happens where they cannot be."""

import logging

import pytest
import torch

from ddpm.models import cpu_kernels


@pytest.fixture
def fresh():
    cpu_kernels.cpu_kernels.cache_clear()
    yield
    cpu_kernels.cpu_kernels.cache_clear()


def test_without_a_compiler_there_are_none(fresh, monkeypatch, caplog):
    monkeypatch.setattr(cpu_kernels, "c_compiler", lambda: None)
    assert cpu_kernels.cpu_kernels() is None
    assert not caplog.records


@pytest.mark.parametrize("script", ["echo 'no\nOpenMP' >&2; exit 1", "exit 0"])  # and no library
def test_a_compiler_that_fails_gives_one_warning(fresh, script, tmp_path, monkeypatch, caplog):
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with caplog.at_level(logging.WARNING):
        assert cpu_kernels.cpu_kernels() is None
        assert cpu_kernels.cpu_kernels() is None
    (record,) = caplog.records
    assert str(compiler) in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.skipif(not cpu_kernels.c_compiler(), reason="no C compiler")
@pytest.mark.parametrize("instructions", ["DEFAULT", *cpu_kernels.INSTRUCTIONS])
def test_the_sources_compile_for_all_instructions(instructions, monkeypatch):
    """They are loaded, not run: this processor may lack them."""
    capability = torch.backends.cpu.get_cpu_capability()
    if instructions != "DEFAULT" and capability not in cpu_kernels.INSTRUCTIONS:
        pytest.skip("not a processor with AVX2")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    library = cpu_kernels.compiled(cpu_kernels.c_compiler())
    assert library.transform
    assert library.group_norm


@pytest.mark.skipif(not cpu_kernels.c_compiler(), reason="no C compiler")
def test_tensors_that_a_kernel_would_misread_are_refused():
    for tensor in (torch.ones(16).double(), torch.ones(16, 2)[:, 0]):
        with pytest.raises(TypeError, match="dense float32"):
            cpu_kernels.cpu_kernels()("group_norm", tensor)


def test_the_compiler_of_the_environment_is_taken_first(monkeypatch):
    monkeypatch.setattr(cpu_kernels.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setenv("CC", "mycc")
    assert cpu_kernels.c_compiler() == "/bin/mycc"
    monkeypatch.delenv("CC")
    assert cpu_kernels.c_compiler() == "/bin/cc"
