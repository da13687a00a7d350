"""More than one process: they train, draw and stop as one, and share out what is too large for one.

Processes are copies of this one that believe torchrun started them, or, where it takes longer, real
agents of torchrun: two "nodes" on loopback.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from support.base import ROOT
from support.crash import SAMPLE, go, output_of
from support.rank_runs import CPU, FULL, RUN, SMALL, assert_close
from support.ranks import ranks
from support.runs import files_of, losses_of, metrics_of, state_of, status_of

from ddpm.jobs import sampling
from ddpm.models.convnet import ConvNet
from ddpm.models.unet import UNet
from ddpm.runner.distributed import fsdp
from ddpm.runner.execution import launch

DRAW = [*(word for word in SAMPLE if not word.startswith("hardware"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run in one process, made when it is first asked for by its words."""
    made = {}

    def find(*words):
        if words not in made:
            home = tmp_path_factory.mktemp("alone")
            assert go(home, *RUN, "hardware=cpu", FULL, *words) == 0, output_of(home)
            made[words] = home / "run"
        return made[words]

    return find


# weights shared out


@pytest.mark.slow
def test_fsdp_trains_like_one_process(alone, tmp_path, monkeypatch):
    words = [*RUN, "hardware=fsdp", *CPU]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [0, 0], output_of(tmp_path)
    run = tmp_path / "run"
    assert files_of(run) == files_of(alone())
    assert_close(alone(), run)
    assert output_of(tmp_path).count("python run.py job=sample") == 1
    # One process reads its checkpoint, draws from it and goes on with it.
    more = ["resume=run", "hardware=cpu", FULL, "job.max_steps=8"]
    assert go(tmp_path, *more) == 0, output_of(tmp_path)
    assert_close(alone("job.max_steps=8"), run, 8)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_learn_the_timesteps_of_one(strategy, alone, tmp_path, monkeypatch):
    learning = [
        "schedule=rectified",
        "schedule.T=25",
        "timesteps=importance",
        "timesteps.history=1",
    ]
    learning += ["objective=edm", "objective.sigma_data=data", "weighting=edm"]
    learning += ["job.batch_size=64", "sampler.steps=5"]
    words = [*RUN, f"hardware={strategy}", *CPU, *learning]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [0, 0], output_of(tmp_path)
    one, two = (state_of(run, 6)["diffusion"] for run in (alone(*learning), tmp_path / "run"))
    assert one["timesteps.counts"].min() >= 1
    assert torch.equal(one["timesteps.counts"], two["timesteps.counts"])
    assert torch.equal(one["objective.measured"], two["objective.measured"])
    torch.testing.assert_close(one["timesteps.losses"][:-1], two["timesteps.losses"][:-1])
    assert_close(alone(*learning), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["ema", "both"])
def test_two_ranks_begin_with_given_weights(kind, strategy, alone, tmp_path, monkeypatch):
    words = [w for w in RUN if not w.startswith("model")]
    words += [f"init_from={alone()}", f"init_weights={kind}", "optimizer.lr=2e-5"]
    got = ranks(tmp_path, *words, f"hardware={strategy}", *CPU, monkeypatch=monkeypatch)
    assert got == [0, 0], output_of(tmp_path)
    assert output_of(tmp_path).count(f"weights of {alone()}, step 6\n") == 1
    one = alone(*words)
    assert_close(one, tmp_path / "run")
    assert losses_of(one)[0][1] < losses_of(alone())[0][1]


@pytest.mark.slow
def test_fsdp_resumes_a_run_of_one_process(alone, tmp_path, monkeypatch):
    assert go(tmp_path, *RUN, "hardware=cpu", FULL, "job.max_steps=4") == 0, output_of(tmp_path)
    words = ["resume=run", "hardware=fsdp", *CPU, "job.max_steps=8"]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [0, 0], output_of(tmp_path)
    assert_close(alone("job.max_steps=8"), tmp_path / "run", 8)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["unet", "resunet", "dit", "jit"])
@pytest.mark.parametrize(
    "more", [["job.accumulate_grad_batches=2"], ["job.sample_every=2"]], ids=str
)
def test_fsdp_takes_every_network(model, more, alone, tmp_path, monkeypatch):
    words = [*SMALL[model], *more, "optimizer.lr=2e-5"]
    got = ranks(tmp_path, *RUN, "hardware=fsdp", *CPU, *words, monkeypatch=monkeypatch)
    assert got == [0, 0], output_of(tmp_path)
    assert_close(alone(*words), tmp_path / "run", rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
@pytest.mark.parametrize("ema", ["power", "several"])
def test_several_averages_on_two_ranks_equal_those_of_one_process(
    ema, strategy, alone, tmp_path, monkeypatch
):
    words = [f"ema={ema}"]
    got = ranks(tmp_path, *RUN, f"hardware={strategy}", *CPU, *words, monkeypatch=monkeypatch)
    assert got == [0, 0], output_of(tmp_path)
    one, run = alone(*words), tmp_path / "run"
    assert files_of(run) == files_of(one)
    assert_close(one, run)
    for path in (one / "snapshots").glob("*.pt"):
        stored = (torch.load(p, weights_only=True) for p in (path, run / "snapshots" / path.name))
        wanted, found = ({**s["averages"]} for s in stored)
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-4)
    assert (one / "snapshots").exists() is (ema == "power")
    # Two processes average and draw from a length as one does.
    length = {"power": "0.07", "several": "0.99"}[ema]
    jobs = {"drawn": [*DRAW, "job.num_samples=3", f"job.weights=ema:{length}"]}
    if ema == "power":
        jobs["average"] = ["job=average", "job.sigma_rel=[0.07,0.1]", "tracker=local"]
    for name, words in jobs.items():
        words += [f"checkpoint={run}", FULL]
        assert go(tmp_path, *words, "hardware=cpu", f"output_dir={name}1") == 0, output_of(tmp_path)
        words += ["hardware=ddp", *CPU, f"output_dir={name}2"]
        assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [0, 0], output_of(tmp_path)
        first, second = tmp_path / f"{name}1", tmp_path / f"{name}2"
        assert files_of(first) == files_of(second)
        for file in files_of(first):
            if file.endswith((".png", ".safetensors")):
                assert (first / file).read_bytes() == (second / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["job.compile=true"], ["hardware.precision=bf16-mixed"]], ids=str
)
def test_fsdp_in_every_mode(words, alone, tmp_path, monkeypatch):
    got = ranks(tmp_path, *RUN, "hardware=fsdp", *CPU, *words, monkeypatch=monkeypatch)
    assert got == [0, 0], output_of(tmp_path)
    for (_, loss), (_, other) in zip(
        losses_of(alone(*words)), losses_of(tmp_path / "run"), strict=True
    ):
        assert loss == pytest.approx(other, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_classifier_is_measured_by_all_ranks_together(strategy, tmp_path, monkeypatch):
    words = ["job=train_classifier", "tracker=local", "data=digits", "job.batch_size=8"]
    words += ["job.max_steps=4", "job.log_every=4", "job.evaluate_every=4", "optimizer.lr=1e-6"]
    words += ["job.warmup_steps=0"]
    assert go(tmp_path, *words, "output_dir=one", "hardware=cpu", FULL) == 0, output_of(tmp_path)
    words += ["output_dir=two", f"hardware={strategy}", *CPU]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [0, 0], output_of(tmp_path)
    one, two = (
        {k: v for k, v in metrics_of(tmp_path / name)[-1].items() if k.startswith("eval/")}
        for name in ("one", "two")
    )
    assert len(one) == 6
    assert one == two
    assert len(set(one.values())) > 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["schedule=learned"], "hardware=fsdp: cannot train schedule=learned"),
        (["hardware.precision=16-mixed"], "hardware.precision=16-mixed: hardware=fsdp"),
    ],
)
def test_unsupported_fsdp_settings_are_refused_first(words, expected, tmp_path, monkeypatch):
    words = [*RUN, "hardware=fsdp", *CPU, *words]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [2, 2]
    assert output_of(tmp_path).count(expected) == 1
    assert not (tmp_path / "run").exists()


def test_fsdp_blocks_of_each_network():
    size = {"channels": 1, "out_channels": 1, "image_size": 8, "num_classes": None}
    options = {"num_blocks": 1, "groups": 2, "num_heads": 1, "attention_resolutions": [4]}
    unet = UNet(**size, widths=[4, 8, 8], **options)
    assert [type(block).__name__ for block in fsdp.blocks(unet)] == [
        *("TimeEmbedding", "Stage", "Down", "Down", "Up", "Up", "Stage")
    ]
    net = ConvNet(**size, width=8, time_conditioning=True)
    assert [type(block).__name__ for block in fsdp.blocks(net)] == ["TimeEmbedding"]


# images


def test_two_ranks_sample_the_bytes_of_one(alone, tmp_path, monkeypatch):
    words = [*DRAW, f"checkpoint={alone()}", "job.num_samples=7", "job.batch_size=3", FULL]
    assert go(tmp_path, *words, "hardware=cpu", "output_dir=one") == 0, output_of(tmp_path)
    words += ["hardware=ddp", *CPU, "output_dir=two"]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [0, 0], output_of(tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    assert files_of(one) == files_of(two)
    for name in files_of(one):
        if name.endswith((".png", ".gif")):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.slow
def test_fewer_batches_than_ranks_give_a_note(alone, tmp_path, monkeypatch):
    words = [*DRAW, f"checkpoint={alone()}", "job.num_samples=2", "hardware=ddp", *CPU]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [0, 0], output_of(tmp_path)
    assert output_of(tmp_path).count("1 batches for 2 processes") == 1


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "_sees_folder", lambda *_: os.environ.get("RANK") != "1")
    words = [*DRAW, f"checkpoint={alone()}", "output_dir=s", "hardware=ddp", *CPU]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [2, 2]
    assert output_of(tmp_path).count("all machines must share it") == 1
    assert status_of(tmp_path / "s")["state"] == "failed"
    assert not list((tmp_path / "s").glob("samples/*"))


@pytest.mark.slow
def test_another_checkpoint_on_another_machine_is_refused(alone, tmp_path, monkeypatch):
    real = launch._checkpoint

    def elsewhere(plan):
        path, state = real(plan)
        return path, state | {"step": state["step"] + int(os.environ.get("RANK", 0))}

    monkeypatch.setattr(launch, "_checkpoint", elsewhere)
    words = [*DRAW, f"checkpoint={alone()}", "output_dir=s", "hardware=ddp", *CPU]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [2, 2]
    assert output_of(tmp_path).count("not all processes find the checkpoint") == 1
    assert not (tmp_path / "s").exists()


# mistakes


def test_mistake_is_printed_once(tmp_path, monkeypatch):
    words = [*RUN, "hardware=ddp", *CPU, "optimizer.rl=1"]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [2, 2]
    assert len(output_of(tmp_path).splitlines()) == 1, output_of(tmp_path)


@pytest.mark.slow
def test_warning_is_printed_once(tmp_path, monkeypatch):
    words = [*RUN, "hardware=ddp", *CPU, "job.ema_ramp=1", "job.max_steps=2"]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [0, 0]
    assert output_of(tmp_path).count("job.ema_decay=0.999: after 2 steps") == 1
    assert output_of(tmp_path).count("train    convnet-digits") == 1


# two machines

FREE = "127.0.0.1"


def agents(folder, *words):
    """Two nodes of torchrun with a process each, as README starts them."""
    with socket.socket() as free:
        free.bind((FREE, 0))
        port = free.getsockname()[1]
    environment = os.environ | {"HOME": str(folder), "DDPM_DATA": str(folder / "data")}
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
                *(f"--node-rank={node}", "--nproc-per-node=1", f"--master-addr={FREE}"),
                *(f"--master-port={port}", str(ROOT / "run.py"), *words),
            ],
            cwd=folder,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for node in range(2)
    ]


def ended(nodes):
    """Exit statuses and outputs of the nodes."""
    try:
        outputs = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
    return [node.returncode for node in nodes], outputs


@pytest.mark.slow
def test_two_machines_train_one_run(alone, tmp_path):
    words = [*(w for w in RUN if not w.startswith(("tracker", "output_dir")))]
    words += ["tracker=wandb", "hardware=ddp", *CPU]  # and a folder named after the time
    status, outputs = ended(agents(tmp_path, *words))
    assert status == [0, 0], outputs
    (run,) = tmp_path.glob("outputs/train/convnet-digits/*")
    assert_close(alone(), run)
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    assert outputs[0].count("python run.py job=sample") == 1
    assert "convnet" not in outputs[1]
    # Goes on in one process, and in two again.
    assert go(tmp_path, f"resume={run}", "hardware=cpu", FULL, "job.max_steps=8") == 0
    words = [f"resume={run}", "hardware=ddp", *CPU, "job.max_steps=10"]
    status, outputs = ended(agents(tmp_path, *words))
    assert status == [0, 0], outputs
    assert_close(alone("job.max_steps=10"), run, 10)


@pytest.mark.slow
def test_two_machines_save_once_when_both_are_asked_to_stop(tmp_path):
    words = [*RUN, "hardware=ddp", *CPU, "job.max_steps=100000", "job.save_every=null"]
    words += ["resume=auto"]
    nodes = agents(tmp_path, *words)
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert all(node.poll() is None for node in nodes)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for node in nodes:
        node.send_signal(signal.SIGTERM)
    status, outputs = ended(nodes)
    assert 0 not in status, outputs
    run_status = status_of(tmp_path / "run")
    step = run_status["step"]
    assert run_status == {"state": "preempted", "step": step, "saved": step}
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == [f"step-{step:07d}.pt"]
    status, outputs = ended(agents(tmp_path, *words, f"job.max_steps={step + 2}"))
    assert status == [0, 0], outputs
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, step + 3))


@pytest.mark.slow
def test_one_command_starts_the_processes_that_share(alone, tmp_path):
    words = [*RUN, "hardware=fsdp", "hardware.devices=2", *CPU]
    environment = os.environ | {"HOME": str(tmp_path), "DDPM_DATA": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words],
        **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True},
        timeout=200,
    )
    assert done.returncode == 0, done
    assert done.stderr == ""
    assert_close(alone(), tmp_path / "run")
