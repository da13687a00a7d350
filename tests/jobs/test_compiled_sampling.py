"""When job=sample compiles its network, and for which batches."""

import pytest
import torch
from support.base import TINY
from torch import nn

from ddpm.diffusion import GaussianDiffusion
from ddpm.jobs import sampling
from ddpm.pipeline import Pipeline
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM

CUDA = torch.device("cuda")


class Network(nn.Module):
    """Records whether it is called compiled."""

    def __init__(self):
        super().__init__()
        self.compiled, self.calls = False, []

    def compile(self):
        self.compiled = True
        self._compiled_call_impl = lambda x, t: self.calls.append(("compiled", len(x))) or 0 * x

    def forward(self, x, t):
        self.calls.append(("eager", len(x)))
        return 0 * x


@pytest.fixture
def pipeline():
    diffusion = GaussianDiffusion(betas=torch.linspace(1e-4, 0.02, 100, dtype=torch.float64))
    return Pipeline(Network(), diffusion, DDIM(steps=10, eta=0.0), (1, 2, 2))


@pytest.mark.parametrize(
    ("mode", "device", "batches", "compiled"),
    [
        (False, CUDA, 10_000, False),
        (True, torch.device("cpu"), 1, True),
        ("auto", torch.device("cpu"), 10_000, False),
        ("auto", CUDA, 500, True),  # batches of ten evaluations each
        ("auto", CUDA, 499, False),
    ],
)
def test_network_is_compiled_only_for_many_batches_on_a_gpu_or_on_request(
    pipeline, monkeypatch, mode, device, batches, compiled
):
    monkeypatch.setattr(sampling, "has_gpu_compiler", lambda: True)
    monkeypatch.setattr(sampling, "check_compiler", lambda device: None)
    monkeypatch.setattr(Pipeline, "evaluations", lambda pipeline: 10)  # there is no GPU
    pipeline.device = device
    sampling.compile_if_it_pays(pipeline, mode, batches, 4)
    assert pipeline.model.compiled is compiled


def test_networks_with_kernels_of_their_own_are_not_compiled(pipeline, monkeypatch):
    monkeypatch.setattr(sampling, "has_gpu_compiler", lambda: True)
    monkeypatch.setattr(sampling, "runs_own_kernels", lambda network, device: True)
    pipeline.device = CUDA
    sampling.compile_if_it_pays(pipeline, "auto", 10_000, 4)
    assert not pipeline.model.compiled


def test_smaller_last_batch_is_evaluated_eagerly(pipeline, monkeypatch):
    monkeypatch.setattr(sampling, "check_compiler", lambda device: None)
    sampling.compile_if_it_pays(pipeline, True, 1, 4)
    for size in (4, 3, 4):
        pipeline.sample_seeds(range(size))
    kinds = ["compiled"] * 10 + ["eager"] * 10 + ["compiled"] * 10
    assert [kind for kind, _ in pipeline.model.calls] == kinds


def test_invalid_value_of_job_compile_is_refused(tiny, run):
    status, _, err = run("job=sample", f"checkpoint={tiny}", "job.compile=maybe", *TINY[-1:])
    assert status == 2
    assert "job.compile=maybe" in err


def test_evaluations_are_counted_on_the_device_of_the_pipeline(pipeline, monkeypatch):
    """ "meta" in place of a GPU: a tensor of another device would be an error."""
    meta = torch.device("meta")
    monkeypatch.setattr("ddpm.pipeline.image_noise", lambda seeds, device: torch.zeros_like)
    pipeline.device, pipeline.diffusion = meta, pipeline.diffusion.to(meta)
    for sampler, count in [(DDIM(steps=10, eta=0.0), 10), (DDPM(), 100)]:
        pipeline.sampler = sampler
        assert pipeline.evaluations() == count
    assert not pipeline.model.calls
