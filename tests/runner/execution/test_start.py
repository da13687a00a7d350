"""How a run starts: its imports, its optimizer steps, and the time that it announces."""

import os
import shutil
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
from support.base import ROOT, TINY

from ddpm.diffusion import GaussianDiffusion
from ddpm.pipeline import Pipeline
from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.execution import eager, execute
from ddpm.runner.terminal.progress import clock
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM
from ddpm.samplers.dpm_solver import DPMSolver
from ddpm.samplers.heun import Heun
from ddpm.training.loop import Loop
from ddpm.training.time_left import Outlook


def imported(words, folder, data_dir):
    """The modules that a run of run.py imports, in this order."""
    environment = os.environ | {"DDPM_DATA": str(data_dir), "WANDB_MODE": "offline"}
    process = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "run.py", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = process.stderr.splitlines()
    names = [line.split("|")[-1].strip() for line in lines if line.startswith("import time:")]
    assert process.returncode == 0, process.stderr[-2000:]
    return names


@pytest.mark.slow
def test_run_does_not_import_unused_packages(tiny, tmp_path, data_dir):
    words = [*TINY, "output_dir=second", "tracker=wandb"]  # the data are cached by the first
    names = imported(words, tmp_path, data_dir)
    assert {"torch", "lightning_fabric", "wandb", "matplotlib.figure"} <= set(names)
    for unused in ("torch._dynamo", "torch._inductor", "torchvision", "sklearn", "scipy"):
        assert unused not in names  # pandas: W&B imports it where it is installed
    assert not [name for name in names if name.startswith("wandb.sdk.launch")]
    assert names.index("matplotlib.figure") > names.index("ddpm.training.intervals")


@pytest.mark.parametrize("word", ["resume=other", "init_from=other"])
def test_a_checkpoint_is_not_kept_in_memory_while_training(word, tiny, run, tmp_path, monkeypatch):
    def find(*names):
        path, state = found(*names)
        kept.extend(weakref.ref(weight) for weight in state["ema"].values())
        return path, state

    def train(self, *parts):
        assert kept
        assert all(weight() is None for weight in kept)
        return trained(self, *parts)

    found, trained, kept = checkpoint.find, Loop.train, []
    monkeypatch.setattr(checkpoint, "find", find)
    monkeypatch.setattr(Loop, "train", train)
    shutil.copytree(tiny, tmp_path / "other")
    words = ["job.max_steps=9"] if word.startswith("resume") else [*TINY, "output_dir=own"]
    status, _, err = run(word, *words)
    assert status == 0, err


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("fused", [True, False])
def test_take_step_equals_optimizer_step(optimizer, fused):
    after = []
    for step in (eager.take_step, lambda made: made.step()):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(5))
        made = optimizer([weight], lr=0.1, fused=fused)
        for _ in range(3):
            weight.grad = torch.sin(weight.detach())
            step(made)
        after.append((weight.detach(), made.state_dict()["state"]))
    assert torch.equal(after[0][0], after[1][0])
    assert str(after[0][1]) == str(after[1][1])


def test_optimizers_with_hooks_or_an_overridden_step_are_called_normally():
    calls = []

    class Own(torch.optim.SGD):
        def step(self, closure=None):
            calls.append("own")

    weight = torch.nn.Parameter(torch.ones(1))
    eager.take_step(Own([weight], lr=1.0))
    hooked = torch.optim.SGD([weight], lr=1.0)
    hooked.register_step_post_hook(lambda *_: calls.append("hook"))
    weight.grad = torch.ones(1)
    eager.take_step(hooked)
    assert calls == ["own", "hook"]
    assert weight.item() == 0


@pytest.mark.slow
def test_the_compiler_works_after_an_eager_start(tmp_path):
    """In a process of its own: here it is imported already."""
    script = """
from ddpm.runner.execution import eager
eager.import_fabric()
eager.shield_optimizers()
import sys, torch
from ddpm.runner.distributed.fabric import Fabric
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.Adam([weight], fused=True)
weight.grad = torch.ones(3)
eager.take_step(optimizer)
optimizer.zero_grad()
assert "torch._dynamo" not in sys.modules
layer = torch.nn.Linear(3, 2)
before = layer(torch.ones(1, 3))
layer.compile(backend="eager")
assert torch.equal(layer(torch.ones(1, 3)), before)
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
optimizer.step()
assert "torch._dynamo" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=240)


def lines_of_outlook(steps, total, seen, look, monkeypatch, seconds=1.0, save_every=99):
    """The lines that an Outlook prints for a run whose steps take so many seconds."""
    done = 0
    monkeypatch.setattr("ddpm.training.time_left.time.perf_counter", lambda: done * seconds)
    messages = []
    outlook = Outlook(
        *(0, total, lambda n: n in seen, look, torch.device("cpu"), messages.append),
        save_every=save_every,
    )
    for done in range(1, steps + 1):
        outlook.after(done)
    return messages


@pytest.mark.parametrize(("seconds", "at"), [(1.0, 6), (0.1, 22)])
def test_expected_end_is_printed_after_the_first_steps(seconds, at, monkeypatch):
    """Three seconds or twenty steps after the second step."""
    (line,) = lines_of_outlook(90, 1000, {500, 1000}, 10.0, monkeypatch, seconds)
    first, end = seconds * (500 - at + 10), seconds * (1000 - at + 2 * 10)
    assert (
        line == f"expect   the next picture in about {clock(first)}, the end in about {clock(end)}"
    )


def test_time_of_an_evaluation_is_not_taken_for_time_of_steps(monkeypatch):
    """Steps of 0.1 s; one of 5 s, in steps of 50, follows each tenth step, the tenth included."""
    now, messages = 0.0, []
    monkeypatch.setattr("ddpm.training.time_left.time.perf_counter", lambda: now)
    outlook = Outlook(
        *(0, 100, lambda n: False, 0.0, torch.device("cpu"), messages.append),
        evaluate_every=10,
        evaluation_steps=50.0,
    )
    for step in range(1, 101):
        now += 0.1
        outlook.after(step)
        now += 5.0 * (step % 10 == 0)
    assert messages == ["expect   each evaluation takes about 0:05, the end in about 0:59"]


def test_run_without_previews_prints_only_its_expected_end(monkeypatch):
    assert lines_of_outlook(90, 106, {50, 106}, 0.0, monkeypatch) == [
        "expect   the end in about 1:40"
    ]


@pytest.mark.parametrize(
    ("seconds", "every", "line"),
    [
        (20.0, 2000, "the next checkpoint in about 11:05:40; job.save_every=180 saves"),
        (5000.0, None, "the next checkpoint in about 173 days; job.save_every=1 saves"),
        (20.0, 100, None),
        (1.0, 2000, None),
    ],
)
def test_slow_run_says_how_to_save_each_hour(seconds, every, line, monkeypatch):
    messages = lines_of_outlook(9, 3000, set(), 0.0, monkeypatch, seconds, save_every=every)
    notes = [message for message in messages if message.startswith("note")]
    assert notes == ([f"note     {line} one each hour"] if line else [])


def test_short_runs_print_no_expected_end(monkeypatch):
    assert lines_of_outlook(3, 3, {3}, 1.0, monkeypatch) == []
    assert lines_of_outlook(2, 2, {2}, 1.0, monkeypatch) == []


@pytest.mark.parametrize(
    ("sampler", "count"),
    [
        (DDPM(steps=None, variance="auto"), 100),
        (DDPM(steps=7, variance="fixed_small"), 7),
        (DDIM(steps=5, eta=1.0), 5),
        (DPMSolver(steps=9, order=2), 9),
        (Heun(steps=6), 10),  # one at x_T, which is all noise,
    ],
)
def test_evaluations_of_the_network_are_counted(sampler, count):
    process = GaussianDiffusion(betas=torch.linspace(1e-3, 0.2, 100).double())
    pipeline = Pipeline(torch.nn.Identity(), process, sampler, (1, 2, 2))
    assert pipeline.evaluations() == count


def test_compiled_run_prints_the_time_of_compiling(monkeypatch):
    now = 0.0
    monkeypatch.setattr("ddpm.training.time_left.time.perf_counter", lambda: now)
    messages = []
    outlook = Outlook(
        0, 100, lambda n: n == 100, 0.0, torch.device("cpu"), messages.append, compiles=True
    )
    for step, now in enumerate([75.0, 76.0, 78.0, 80.0], start=1):  # noqa: B007
        left = outlook.after(step)
    assert messages == ["compile  1:15 with the next step", "expect   the end in about 3:12"]
    assert left == 2.0 * (100 - 4)
    outlook.begin(4, compiles=True)
    now = 100.0
    outlook.after(5)
    assert messages[2:] == ["compile  0:20 with the next step"]


@pytest.mark.parametrize(
    ("files", "named"),
    [([], "run"), (["samples/a.npy"], "run/samples"), (["grid.png"], "run/grid.png")],
)
def test_the_last_line_names_what_is_there(files, named, tmp_path, capsys):
    folder = tmp_path / "run"
    for file in files or ["scores.jsonl"]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    plan = SimpleNamespace(config={"choices": {"job": "evaluate"}, "kind": "draws"}, trains=False)
    execute._print_outcome({"state": "done", "dir": folder}, plan)
    assert capsys.readouterr().out == f"done     {tmp_path / named}\n"
