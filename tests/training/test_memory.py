"""The expected memory of a run, and job.accumulate_grad_batches=auto."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from lightning_fabric import Fabric
from support.base import ROOT, TINY
from support.runs import assert_equal_state, losses_of, state_of
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ddpm.denoising import training_losses
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import InputError
from ddpm.models import winograd
from ddpm.models.cpu_kernels import cpu_kernels
from ddpm.models.dit import DiT
from ddpm.models.unet import UNet
from ddpm.training import memory, memory_probe
from ddpm.training.expected_memory import (
    MemoryEstimate,
    choose_accumulation,
    estimate_memory,
    extrapolate,
    splits,
)
from ddpm.training.memory import Ledger
from ddpm.training.memory_probe import MemoryProbe, Trace

KIB = 1024
ADAM = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)


# memory of operations


def test_a_ledger_counts_live_tensors_and_no_views():
    x = torch.zeros(256)  # allocated before: not counted
    with Ledger() as ledger:
        y = x + 1
        z = y.view(16, 16).t()
        assert ledger.live == KIB
        z = z @ z
        assert ledger.live == 2 * KIB
        del y
        z.add_(1)
    assert ledger.live == KIB
    assert ledger.peak == 2 * KIB


def test_a_ledger_counts_tensors_saved_for_backward():
    weight = nn.Parameter(torch.ones(256))
    with Ledger() as ledger:
        y = (weight.exp() * 2).exp()  # each exp keeps its result
        assert ledger.live == 2 * KIB
        y.sum().backward()
        del y
    assert ledger.live == weight.grad.nbytes


def test_malloc_overhead_is_added_to_small_tensors_on_glibc(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    cpu, large = torch.device("cpu"), 32 * 2**20
    assert memory.with_loss(cpu, 1)(1000) == 1350
    assert memory.with_loss(cpu, 1)(large) == large
    assert memory.with_loss(cpu, 2)(large // 2) == large // 2
    assert memory.with_loss(torch.device("cuda"), 1)(1000) == 1000
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    assert memory.with_loss(cpu, 1)(1000) == 1000


def test_extrapolation_from_two_numbers_of_images():
    assert extrapolate({2: [10, 30], 3: [12, 30]}, 8) == [22, 30]
    assert extrapolate({2: [10, 30], 3: [12, 30]}, 1) == [8, 30]
    assert extrapolate({2: [10], 3: [5, 40]}, 4) == [70]  # different operations: the peaks
    assert extrapolate({8: [7]}, 8) == [7]


# free memory


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_free_memory_respects_cgroup_limits(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/slurm/job\n")
    write(root / "slurm", memory__max="9000\n", memory__current="8000\n")
    write(root / "slurm" / "job", memory__max="5000\n", memory__current="3000\n")
    write(root / "slurm" / "job", memory__stat="anon 7\ninactive_file 500\n")
    assert memory._control_groups(root, own) == [2500, 1000]
    (root / "slurm" / "memory.max").write_text("max\n")
    assert memory._control_groups(root, own) == [2500]


def test_free_memory_respects_cgroup_v1_limits(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("4:memory:/job\n3:cpuset:/\n0::/\n")
    write(
        root / "memory" / "job",
        memory__limit_in_bytes="5000\n",
        memory__usage_in_bytes="3000\n",
        memory__stat="total_inactive_file 10\n",
    )
    none = str(2**63 - 4096)
    write(root / "memory", memory__limit_in_bytes=none, memory__usage_in_bytes="1")
    assert memory._control_groups(root, own) == [2010]


def test_free_memory_may_be_unknown(tmp_path):
    assert memory._control_groups(tmp_path, tmp_path / "none") == []
    assert memory._machine(tmp_path / "none") is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   5 kB\n")
    assert memory._machine(tmp_path / "meminfo") == 5 * KIB


# memory of training


def network():
    torch.manual_seed(0)
    options = {"channels": 1, "out_channels": 1, "image_size": 16, "num_classes": None}
    options |= {"widths": [16, 32], "num_blocks": 1, "groups": 2, "num_heads": 1}
    return UNet(**options, attention_resolutions=[])


def probe_of(net, loss=None, recomputes=False, **hardware):
    fabric = Fabric(accelerator="cpu", devices=1, **hardware)
    process = GaussianDiffusion(betas=torch.full((50,), 0.02, dtype=torch.float64))
    options = {"shape": (1, 16, 16), "labelled": False, "recomputes": recomputes}
    return MemoryProbe(net, loss or functools.partial(training_losses, process), fabric, **options)


def expect(probe, share, parts=None):
    optimizer = ADAM(list(probe.net.parameters()))
    knobs = {"batch": share, "share": share, "accumulate": parts, "eval_batch": 0}
    return estimate_memory(probe, ADAM, optimizer, **knobs)


def counted_step(net, share, parts):
    """Peak bytes of tensors in the second step of training, with weights and their average."""
    process = GaussianDiffusion(betas=torch.full((50,), 0.02, dtype=torch.float64))
    optimizer = ADAM(list(net.parameters()))

    def step():
        x_0 = torch.zeros(share, 1, 16, 16)
        eps, t = torch.zeros_like(x_0), torch.zeros(share, dtype=torch.int64)
        for part in zip(*(tensor.chunk(parts) for tensor in (x_0, t, eps)), strict=True):
            training_losses(process, net, *part).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    state = sum(v.nbytes for entries in optimizer.state.values() for v in entries.values())
    with Ledger() as ledger:
        step()
    return ledger.peak + state + 2 * sum(weight.nbytes for weight in net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(("share", "parts"), [(8, 1), (24, 1), (24, 4)])
def test_estimate_matches_the_measured_memory_of_a_step(share, parts, fake, monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory_probe, "SMALL", 0 if fake else 1e12)
    net = network().to(memory_format=torch.channels_last)
    probe = probe_of(net)
    assert (probe.fake is not None) is fake
    for known in (None, parts):
        estimate = expect(probe, share, known).total(parts)
        counted = counted_step(net, share, parts)
        # While the number of parts is open, kernels are chosen as for few images: they take more.
        assert 0.95 * counted <= estimate <= (1.15 if known is None else 1.05) * counted


def test_each_average_takes_the_memory_of_the_weights():
    net = network()
    kept = {}
    for averages in (1, 3):
        optimizer = ADAM(list(net.parameters()))
        knobs = {"batch": 4, "share": 4, "accumulate": 1, "eval_batch": 0, "averages": averages}
        kept[averages] = estimate_memory(probe_of(net), ADAM, optimizer, **knobs).kept
    assert kept[3] - kept[1] == 2 * sum(weight.nbytes for weight in net.parameters())


@pytest.mark.parametrize("fake", [False, True])
def test_estimate_matches_the_measured_memory_of_a_transformer_step(fake, monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory_probe, "SMALL", 0 if fake else 1e12)
    torch.manual_seed(0)
    size = {"channels": 1, "out_channels": 1, "image_size": 16, "num_classes": None, "size": None}
    net = DiT(**size, patch_size=1, depth=2, width=16, num_heads=2)
    estimate = expect(probe_of(net), 8, 1).total(1)
    assert estimate == pytest.approx(counted_step(net, 8, 1), rel=0.05)


@pytest.mark.slow  # the first backward pass of a process counts: one is started
def test_forked_processes_can_train_after_probing_with_fake_tensors():
    program = """
        import os, torch
        from training.test_memory import network, probe_of
        from ddpm.training import memory_probe

        memory_probe.SMALL = 0
        assert probe_of(network()).fake
        torch.zeros(1, requires_grad=True).sum().backward()
        child = os.fork()
        if not child:
            torch.zeros(1, requires_grad=True).sum().backward()
            os._exit(0)
        print(os.waitpid(child, 0)[1])
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    made = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert made.stdout.split() == ["0"], made.stderr


def test_probing_changes_neither_network_nor_random_state():
    net = network()
    net.register_buffer("count", torch.zeros(1))
    drawn = []

    def loss(net, x_0, t, eps, label):
        net.count += 1  # as BatchNorm does
        drawn.append(torch.rand(1))
        return net(x_0, t).mean((1, 2, 3))

    before = {key: value.clone() for key, value in net.state_dict().items()}
    probe = probe_of(net, loss)
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    needs = expect(probe, 4)
    assert choose_accumulation(probe, needs, tries=True) == 1
    assert torch.equal(torch.rand(2), wanted)
    assert len(drawn) == 3
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())


def test_micro_batches_and_recomputing_need_less_memory():
    net = network()
    needs = expect(probe_of(net), 16)
    totals = [needs.total(parts) for parts in splits(16)]
    assert totals == sorted(totals, reverse=True)
    from ddpm.training.recompute import recompute

    recompute(net)
    assert expect(probe_of(net), 16).total(1) < 0.8 * totals[0]


def test_estimate_includes_optimizer_state_and_precision():
    net = network()
    adam = expect(probe_of(net), 4)
    sgd = estimate_memory(
        probe_of(net),
        functools.partial(torch.optim.SGD, lr=0.1),
        torch.optim.SGD(net.parameters(), lr=0.1),
        batch=4,
        share=4,
        accumulate=1,
        eval_batch=0,
    )
    weights = sum(weight.nbytes for weight in net.parameters())
    assert adam.kept - sgd.kept == pytest.approx(2 * weights, rel=0.01)
    half = expect(probe_of(net, precision="bf16-mixed"), 64).total(1)
    assert half < 0.85 * expect(probe_of(net), 64).total(1)


# the accumulation that fits


def needs_of(share, image=100, kept=1000):
    """An estimate in which each image takes `image` bytes."""
    traces = {n: Trace([n * image], [0]) for n in (2, 3)}
    small = {"held": 0, "gradients": 0, "update": 0, "image": 0, "noise": 0}
    return MemoryEstimate(kept=kept, batch=share, share=share, traces=traces, **small)


def test_the_smallest_accumulation_that_fits_is_chosen(monkeypatch):
    probe, needs = probe_of(network()), needs_of(12)
    for room, parts in ((5000, 1), (2000, 2), (1600, 3), (1300, 6), (1160, 12)):
        monkeypatch.setattr(memory, "available", lambda device, room=room: room)
        assert choose_accumulation(probe, needs) == parts
    monkeypatch.setattr(memory, "available", lambda device: None)  # unknown
    assert choose_accumulation(probe, needs) == 1
    monkeypatch.setattr(memory, "available", lambda device: 1100)
    with pytest.raises(InputError, match="not even one image of 16 pixels"):
        choose_accumulation(probe, needs)


@pytest.mark.skipif(cpu_kernels() is None, reason="no C compiler")
def test_fake_convolutions_by_winograd_take_no_operations_of_their_own():
    """Otherwise the start of a run at 256 pixels took minutes: each chunk of each convolution
    ran the transforms on tensors without content."""
    weight = torch.randn(128, 128, 3, 3, requires_grad=True)
    counts = []
    for side in (32, 256):
        with FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger:
            y = winograd.conv2d(torch.empty(8, 128, side, side), weight)
            y.backward(torch.empty_like(y))
        counts.append(len(ledger.after))
    assert counts[0] == counts[1] < 20


def test_preview_counts_towards_the_total_but_not_for_accumulation(monkeypatch):
    probe, needs = probe_of(network()), dataclasses.replace(needs_of(4), preview=9000, drawn=16)
    assert "for 16 images that are drawn or evaluated at a time" in needs.text(2)
    assert "for 4 images" in dataclasses.replace(needs, preview=1).text(1)
    monkeypatch.setattr(memory, "available", lambda device: 2000)
    assert needs.total(1) == 10000
    assert choose_accumulation(probe, needs) == 1


def test_accumulation_is_tried_out_on_gpus():
    seen = []

    def loss(net, x_0, t, eps, label):
        seen.append(len(x_0))
        if len(x_0) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return net(x_0, t).mean((1, 2, 3))

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    probe = probe_of(network(), loss)
    assert choose_accumulation(probe, needs_of(12), tries=True) == 3
    assert seen == [12, 6, 4, 4]  # the second pass adds to gradients
    with pytest.raises(InputError, match="not even one image"):
        choose_accumulation(
            probe_of(network(), lambda *_: loss(None, range(9), 0, 0, 0)), needs_of(2), tries=True
        )


def test_splits_are_the_divisors_of_the_batch():
    assert splits(12) == [1, 2, 3, 4, 6, 12]


# in a run


def go(run, *words):
    status, out, err = run(*words)
    assert status == 0, out + err
    return out + err


def limit_memory(monkeypatch, room):
    monkeypatch.setattr(memory, "available", lambda device: room)


def test_a_run_prints_and_records_its_expected_memory(run, tmp_path, monkeypatch):
    out = go(run, *TINY, "output_dir=run")
    (line,) = [line for line in out.splitlines() if line.startswith("memory ")]
    assert line.startswith("memory   about ")
    assert "for 8 images" in line
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert 1 < about["expected_memory_mb"] < 1000
    assert "memory " not in go(run, "job=sample", "checkpoint=run", "tracker=local")


def test_too_little_memory_gives_a_warning(run, monkeypatch):
    limit_memory(monkeypatch, 1000)
    output = go(run, *TINY, "output_dir=run")
    (line,) = [line for line in output.splitlines() if line.startswith("job.batch_size=8: about")]
    assert "job.recompute=true" in line
    assert "job.accumulate_grad_batches=auto" in line


def test_auto_accumulates_and_a_resumed_run_keeps_the_number(run, tmp_path, monkeypatch):
    auto = [*TINY, "job.accumulate_grad_batches=auto"]
    monkeypatch.setattr("ddpm.training.expected_memory.choose_accumulation", lambda probe, needs: 4)
    out = go(run, *auto, "output_dir=whole")
    assert "for 2 images at a time, 4 times a step" in out
    go(run, *TINY, "job.accumulate_grad_batches=4", "output_dir=four")
    assert_equal_state(state_of(tmp_path / "whole", 6), state_of(tmp_path / "four", 6))
    go(run, *TINY, "output_dir=one")
    for (_, one), (_, four) in zip(
        losses_of(tmp_path / "one"), losses_of(tmp_path / "whole"), strict=True
    ):
        assert four == pytest.approx(one, rel=1e-4)

    go(run, *[w for w in auto if "max_steps" not in w], "job.max_steps=4", "output_dir=half")
    monkeypatch.setattr(
        "ddpm.training.expected_memory.choose_accumulation", lambda probe, needs: 1
    )  # now there is more room
    out = go(run, "resume=half", "job.max_steps=6")
    assert "4 times a step" in out
    assert_equal_state(state_of(tmp_path / "whole", 6), state_of(tmp_path / "half", 6))
    about = json.loads((tmp_path / "half" / "about.json").read_text())
    assert about["chosen"] == {"accumulate": 4}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["job.accumulate_grad_batches=some"],
            "job.accumulate_grad_batches=some: must be a whole number from 1, or auto.",
        ),
        (["job.accumulate_grad_batches=aut"], "Did you mean 'auto'?"),
        (
            ["job.accumulate_grad_batches=0"],
            "job.accumulate_grad_batches=0: must be a whole number from 1, or auto.",
        ),
        (["job.accumulate_grad_batches=true"], "must be a whole number from 1, or auto."),
        (
            ["job.accumulate_grad_batches=16"],
            "job.accumulate_grad_batches=16: must be at most job.batch_size=8, the images",
        ),
        (
            ["job.accumulate_grad_batches=3"],
            "job.batch_size=8: must be divisible by job.accumulate_grad_batches=3.",
        ),
        (["job.recompute=1"], "job.recompute=1: must be true or false."),
    ],
)
def test_an_impossible_accumulation_is_refused(words, expected, run, tmp_path):
    status, _, err = run(*TINY, *words, "output_dir=run")
    assert (status, err.count("\n")) == (2, 1)
    assert expected in err
    assert not (tmp_path / "run").exists()


def test_no_folder_is_made_if_not_even_one_image_fits(run, tmp_path, monkeypatch):
    limit_memory(monkeypatch, 1000)
    status, _, err = run(*TINY, "job.accumulate_grad_batches=auto", "output_dir=run")
    assert (status, err.count("\n")) == (2, 1)
    assert "job.accumulate_grad_batches=auto: not even one image of 16 pixels at a time fits" in err
    assert not (tmp_path / "run").exists()


def test_a_network_whose_memory_cannot_be_measured_still_trains(run, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("data-dependent\ncontrol flow")

    monkeypatch.setattr("ddpm.training.expected_memory.estimate_memory", fails)
    status, out, err = run(*TINY, "output_dir=run")
    assert status == 0, err
    assert "data-dependent control flow" in out + err
    assert not [line for line in out.splitlines() if line.startswith("memory ")]
    status, _, err = run(*TINY, "job.accumulate_grad_batches=auto", "output_dir=other")
    assert status == 2
    assert err.startswith("job.accumulate_grad_batches=auto: ")
    assert "data-dependent control flow" in err


def test_estimate_includes_cublas_workspaces_on_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert memory.workspaces(torch.device("cuda"), 1) == 4 * 32 * 2**20
    needs = needs_of(2, kept=10)
    grown = dataclasses.replace(needs, workspaces=7, preview=1000)
    assert grown.training(1) == needs.training(1) + 7
    assert grown.total(1) == 10 + 7 + 1000
