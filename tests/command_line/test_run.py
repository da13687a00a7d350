"""run.py as a user calls it: train, resume, sample, sweep, stop, several processes."""

import functools
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.base import ROOT, TINY
from support.runs import (
    SAMPLE,
    assert_equal_state,
    files_of,
    go,
    losses_of,
    metrics_of,
    pngs,
    process,
    state_of,
    status_of,
)
from support.wandb_reader import read_run, run_files

from ddpm import Pipeline
from ddpm.images import load_png
from ddpm.runner.runs.run_dir import read_about, read_status
from ddpm.samplers.ddim import DDIM
from ddpm.samplers.ddpm import DDPM

# train


def test_a_run_folder_holds_what_is_documented(tiny):
    assert files_of(tiny) == {
        "config.yaml",
        "metrics.jsonl",
        "status.json",
        "run.lock",
        "loss.png",
        "about.json",
        "samples/step-000006.png",
        *(f"checkpoints/step-000000{step}.pt" for step in (2, 4, 6)),
    }
    assert status_of(tiny) == {"state": "done", "step": 6, "saved": 6}
    assert read_status(tiny)["total"] == 6
    assert read_status(tiny)["seconds"] > 0
    assert read_about(tiny)["parameters"] > 1000
    rows = metrics_of(tiny)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert {"train/loss", "train/lr", "train/images_per_sec", "train/epoch"} <= row.keys()
        assert {"train/grad_norm", "train/ema_decay", "train/memory_mb"} <= row.keys()
        assert row["train/memory_mb"] > 1
        assert row["train/ema_decay"] == min(0.9999, row["step"] / (row["step"] + 9))
        assert 0 < row["train/loss"] < 10
        assert row["train/images_per_sec"] > 0
    config = yaml.safe_load((tiny / "config.yaml").read_text())
    assert config["job"]["max_steps"] == 6
    assert config["data"]["channels"] == config["model"]["channels"] == 1
    assert config["choices"]["model"] == "convnet"
    assert set(TINY) <= set(config["overrides"])
    assert "${" not in (tiny / "config.yaml").read_text()
    with Image.open(tiny / "samples" / "step-000006.png") as grid:
        assert grid.size == (2 * 16 + 3 * 2, 2 * 16 + 3 * 2) or min(grid.size) >= 32
    with Image.open(tiny / "loss.png") as curve:
        assert min(curve.size) > 200


def test_the_learning_rate_warms_up(tiny):
    rates = [row["train/lr"] for row in metrics_of(tiny)]
    config = yaml.safe_load((tiny / "config.yaml").read_text())
    lr, warmup = config["optimizer"]["lr"], config["job"]["warmup_steps"]
    assert rates == pytest.approx([lr * (n + 1) / warmup for n in range(6)])


def test_new_run_prints_its_folder_and_next_commands(run, tmp_path):
    out = go(run, *TINY)
    (folder,) = (tmp_path / "outputs" / "train" / "convnet-digits").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    relative = folder.relative_to(tmp_path)
    assert f"python run.py job=sample checkpoint={relative}" in out
    assert f"{relative}/samples/step-000006.png" in out
    assert "6 steps" in out


@pytest.mark.slow
def test_experiment_debug_tries_all_that_a_run_does(run, tmp_path):
    words = ["experiment=debug", "model=convnet", "job.evaluate_every=20", "features=pixels"]
    go(run, *words, "hardware=cpu", "job.evaluate_samples=8", "output_dir=run")
    folder = tmp_path / "run"
    rows = metrics_of(folder)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["step"] for row in rows if "eval/loss" in row] == [10, 20]
    assert "eval/kd_pixels" in rows[-1]
    files = files_of(folder)
    assert {f"checkpoints/step-00000{step}.pt" for step in (10, 20)} <= files
    assert {f"samples/step-0000{step}.png" for step in (10, 20)} <= files
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["tracker"] == {}


@pytest.mark.slow
def test_runs_started_in_one_second_get_separate_folders(run, tmp_path):
    for _ in range(3):
        go(run, *TINY, "job.max_steps=1")
    assert len(list((tmp_path / "outputs" / "train" / "convnet-digits").iterdir())) == 3


@pytest.mark.slow
def test_run_depends_on_its_seed(run, tiny, tmp_path):
    go(run, *TINY, "output_dir=again")
    go(run, *TINY, "output_dir=other", "seed=1")
    assert_equal_state(state_of(tiny, 6), state_of(tmp_path / "again", 6))
    assert losses_of(tiny) == losses_of(tmp_path / "again")
    assert losses_of(tiny) != losses_of(tmp_path / "other")


def test_accumulation_equals_one_batch_up_to_rounding(run, tiny, tmp_path):
    go(run, *TINY, "output_dir=two", "job.accumulate_grad_batches=2")
    one, two = (dict(losses_of(folder)) for folder in (tiny, tmp_path / "two"))
    assert one.keys() == two.keys()
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=1e-4)
    one, two = (state_of(folder, 6)["model"] for folder in (tiny, tmp_path / "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_epochs_limit_a_run_and_schedule_previews(run, tmp_path):
    changes = ["job.max_steps=null", "job.max_epochs=1.5", "job.batch_size=600"]
    go(run, *TINY, *changes, "job.sample_every_epochs=1", "job.log_every=2", "output_dir=run")
    folder = tmp_path / "run"
    assert status_of(folder) == {
        "state": "done",
        "step": 5,
        "saved": 5,
    }  # 1.5 x 1617 / 600, rounded up
    assert [row["step"] for row in metrics_of(folder)] == [2, 4, 5]
    assert {p.name for p in (folder / "samples").iterdir()} == {
        "step-000003.png",
        "step-000005.png",
    }


def test_only_the_newest_checkpoints_are_kept(run, tmp_path):
    go(run, *TINY, "job.save_every=1", "job.keep_checkpoints=2", "output_dir=run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-0000005.pt", "step-0000006.pt"]


def test_previews_are_drawn_from_the_same_noise(run, tmp_path):
    words = ["objective=eps", "job.sample_every=3", "optimizer.lr=1e-12"]
    go(run, *TINY, *words, "output_dir=run")
    first, last = (
        load_png(tmp_path / "run" / "samples" / f"step-00000{step}.png").int() for step in (3, 6)
    )
    assert first.float().std() > 10
    assert (first - last).abs().max() <= 1


def test_nan_loss_fails_the_run_with_advice(run, tmp_path):
    status, _, err = run(*TINY, "optimizer.lr=1e30", "job.warmup_steps=0", "output_dir=run")
    assert status == 2
    assert "optimizer.lr" in err
    assert len(err.splitlines()) <= 5
    assert "Traceback" not in err
    run_status = status_of(tmp_path / "run")
    assert run_status["state"] == "failed"
    assert "loss" in run_status["error"]


def test_finished_run_is_not_overwritten(run, tiny):
    before = {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    status, _, err = run(*TINY, "output_dir=run")
    assert status == 2
    assert "output_dir=run" in err
    assert "resume=run" in err
    assert {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()} == before


# resume


def test_resumed_run_equals_uninterrupted_run(run, tiny, tmp_path):
    go(run, *TINY, "job.max_steps=3", "output_dir=parts")
    parts = tmp_path / "parts"
    assert status_of(parts) == {"state": "done", "step": 3, "saved": 3}
    out = go(run, "resume=parts", "job.max_steps=6")
    assert "3 to 6" in out
    assert status_of(parts) == {"state": "done", "step": 6, "saved": 6}
    assert_equal_state(state_of(parts, 6), state_of(tiny, 6))
    assert losses_of(parts) == losses_of(tiny)
    one, other = (load_png(folder / "samples" / "step-000006.png") for folder in (parts, tiny))
    assert torch.equal(one, other)


def test_steps_after_the_checkpoint_are_not_logged_twice(run, tiny):
    before = losses_of(tiny)
    for step in (4, 6):
        (tiny / "checkpoints" / f"step-000000{step}.pt").unlink()
    go(run, f"resume={tiny}")
    assert losses_of(tiny) == before
    assert status_of(tiny) == {"state": "done", "step": 6, "saved": 6}


def test_damaged_checkpoint_is_skipped(run, tiny):
    before = state_of(tiny, 6)
    path = tiny / "checkpoints" / "step-0000006.pt"
    path.write_bytes(path.read_bytes()[:-100])
    out = go(run, f"resume={tiny}")
    assert str(path) in out
    assert_equal_state(state_of(tiny, 6), before)


def test_resuming_a_finished_run_changes_nothing(run, tiny):
    before = {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    out = go(run, f"resume={tiny}")
    assert "done" in out
    assert "job.max_steps" in out, "what to change to go on"
    assert {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()} == before


def test_max_steps_below_the_current_step_changes_nothing(run, tiny):
    before = {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    out = run("resume=run", "job.max_steps=3")[1]
    assert "a larger job.max_steps" in out
    assert {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_older_checkpoint_resumes_only_without_newer_ones(run, tiny, tmp_path):
    go(run, *TINY, "job.max_steps=8", "output_dir=uninterrupted")
    status, _, err = run(f"resume={tiny}/checkpoints/step-0000004.pt", "job.max_steps=8")
    assert status == 2
    assert "newer checkpoints, up to step-0000006.pt" in err
    (tiny / "checkpoints" / "step-0000006.pt").rename(tmp_path / "later.pt")
    out = go(run, f"resume={tiny}/checkpoints/step-0000004.pt", "job.max_steps=8")
    assert "4 to 8" in out
    assert losses_of(tiny) == losses_of(tmp_path / "uninterrupted")
    assert_equal_state(state_of(tiny, 8), state_of(tmp_path / "uninterrupted", 8))


@pytest.mark.slow
def test_sweep_that_resumes_a_run_is_in_the_table(run, tiny):
    out = go(run, "-m", "resume=run", "job.max_steps=7,8")
    assert "\n2 done\n" in out


@pytest.mark.slow
def test_sampler_key_applies_to_the_sampler_of_the_run(run, tmp_path):
    """Not for the default one, which the command line does not name either."""
    ddpm = [word for word in TINY if not word.startswith("sampler.")]
    go(run, *ddpm, "sampler=ddpm", "schedule.T=40", "job.num_samples=1", "output_dir=run")
    go(run, "resume=run", "job.max_steps=7", "sampler.variance=fixed_small")
    assert state_of(tmp_path / "run", 7)["hparams"]["sampler"]["variance"] == "fixed_small"


def test_resumed_run_keeps_its_settings_and_takes_new_ones(run, tiny):
    go(run, f"resume={tiny}", "job.max_steps=9", "job.log_every=3", "sampler.steps=3")
    assert [row["step"] for row in metrics_of(tiny)] == [1, 2, 3, 4, 5, 6, 9]
    config = yaml.safe_load((tiny / "config.yaml").read_text())
    assert config["model"]["_target_"].endswith("ConvNet")
    assert (config["job"]["max_steps"], config["job"]["batch_size"]) == (9, 8)
    assert config["sampler"]["steps"] == 3
    assert state_of(tiny, 9)["hparams"]["sampler"]["steps"] == 3


@pytest.mark.slow  # test_changes.py does more
@pytest.mark.parametrize(
    "change",
    ["model=unet", "optimizer=adamw", "optimizer.lr=1", "seed=5", "schedule=cosine", "data=mnist"],
)
def test_resumed_run_refuses_contradicting_keys(change, run, tiny):
    before = {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    status, _, err = run(f"resume={tiny}", "job.max_steps=9", change)
    assert status == 2
    assert change in err
    assert "was trained with" in err
    assert {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()} == before


# sample


@pytest.fixture
def trained(finished):
    """A run whose weights have moved, and whose sampler takes steps enough for shades of grey."""
    changes = ["optimizer.lr=1e-2", "job.warmup_steps=0", "sampler.steps=20", "job.save_every=null"]
    return finished(*TINY, *changes, "schedule.T=100")


@pytest.mark.slow
def test_run_folder_and_its_checkpoint_file_give_the_same_samples(run, trained, tmp_path):
    file = trained / "checkpoints" / "step-0000006.pt"
    go(run, *SAMPLE, "checkpoint=run", "job.num_samples=5", "output_dir=folder")
    go(run, *SAMPLE, f"checkpoint={file}", "job.num_samples=5", "output_dir=file")
    for name in ("folder", "file"):
        folder = tmp_path / name
        assert files_of(folder) >= {"grid.png", "denoising.gif", "config.yaml", "status.json"}
        assert {p.name for p in (folder / "samples").iterdir()} == {
            f"{i:06d}.png" for i in range(5)
        }
        assert status_of(folder)["state"] == "done"
        with Image.open(folder / "denoising.gif") as movie:
            assert 10 < movie.n_frames <= 22  # equal ones in a row are one frame
    images = pngs(tmp_path / "folder")
    assert images.shape == (5, 1, 16, 16)
    assert ((images > 0) & (images < 255)).float().mean() > 0.05
    assert torch.equal(images, pngs(tmp_path / "file"))
    assert len({image.numpy().tobytes() for image in images}) == 5
    assert torch.equal(Pipeline.from_checkpoint(trained).sample(5), images)
    assert torch.equal(Pipeline.from_checkpoint(file).sample(2, seed=3), images[3:])


@pytest.mark.slow
def test_image_depends_only_on_its_seed(run, trained, tmp_path):
    for number, batch_size in enumerate((7, 3)):
        changes = [f"job.batch_size={batch_size}", "job.num_samples=7", "sampler.eta=1"]
        go(run, *SAMPLE, "checkpoint=run", *changes, f"output_dir=s{number}")
    changes = ["job.first_seed=4", "job.num_samples=3", "sampler.eta=1"]
    go(run, *SAMPLE, "checkpoint=run", *changes, "output_dir=late")
    one, other, late = (pngs(tmp_path / name).int() for name in ("s0", "s1", "late"))
    assert (one - other).abs().max() <= 1
    assert (one[4:] - late).abs().max() <= 1
    assert {p.name for p in (tmp_path / "late" / "samples").iterdir()} == {
        "000004.png",
        "000005.png",
        "000006.png",
    }


def test_ema_weights_are_the_default(run, trained, tmp_path):
    for weights in ("ema", "model"):
        changes = ["job.num_samples=2", f"job.weights={weights}", f"output_dir={weights}"]
        go(run, *SAMPLE, "checkpoint=run", *changes)
    images = pngs(tmp_path / "ema")
    assert torch.equal(Pipeline.from_checkpoint(trained).sample(2), images)
    assert not torch.equal(pngs(tmp_path / "model"), images)


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["sampler=ddim", "sampler.steps=3"], DDIM(steps=3, eta=0.0)),
        (["sampler.steps=3", "sampler.eta=1"], DDIM(steps=3, eta=1.0)),
        (["sampler=ddpm"], DDPM(steps=None, variance="fixed_large")),
        ([], DDIM(steps=20, eta=0.0)),
    ],
    ids=["ddim", "its knobs", "ddpm", "the run's own"],
)
def test_sampler_of_the_command_line_is_used(given, expected, run, trained, tmp_path):
    go(run, *SAMPLE, "checkpoint=run", "job.num_samples=2", *given, "output_dir=s")
    images = Pipeline.from_checkpoint(trained, sampler=expected).sample(2)
    assert torch.equal(pngs(tmp_path / "s"), images)
    with Image.open(tmp_path / "s" / "denoising.gif") as movie:
        assert 2 <= movie.n_frames <= 102


def test_values_equal_to_the_checkpoint_are_accepted(run, trained, tmp_path):
    agreeing = [
        "model=convnet",
        "data=digits",
        "schedule=linear",
        "model.width=64",
        "data.resize_mode=resize",
    ]
    go(run, *SAMPLE, "checkpoint=run", *agreeing, "job.num_samples=1", "output_dir=s")
    assert status_of(tmp_path / "s")["state"] == "done"


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    "change",
    [
        "model=unet",
        "model=convnet model.width=32",
        "data=mnist",
        "data.image_size=32",
        "schedule=cosine",
        "schedule.T=500",
        "experiment=pets64",
    ],
)
def test_values_that_contradict_the_checkpoint_are_refused(change, run, trained, tmp_path):
    status, _, err = run(*SAMPLE, "checkpoint=run", *change.split())
    assert status == 2
    assert change.split()[-1] in err
    assert "checkpoint=run was trained with" in err
    assert len(err.splitlines()) <= 5
    assert not (tmp_path / "outputs").exists()


def test_samples_of_two_runs_are_not_mixed(run, trained, tmp_path):
    arguments = [*SAMPLE, "checkpoint=run", "job.num_samples=1", "output_dir=s"]
    go(run, *arguments)
    status, _, err = run(*arguments, "job.first_seed=1")
    assert status == 2
    assert "output_dir=s" in err
    assert [p.name for p in (tmp_path / "s" / "samples").iterdir()] == ["000000.png"]


# multirun


def sweep_folder(tmp_path):
    (folder,) = (tmp_path / "outputs" / "sweep").iterdir()
    return folder


def test_sweep_runs_every_job_and_prints_a_table(run, tmp_path):
    status, out, err = run(
        "-m", *TINY[1:], "job.max_steps=2", "data.image_size=16,15", "model=convnet,unet"
    )
    assert status == 1
    assert "Traceback" not in out + err
    folder = sweep_folder(tmp_path)
    jobs = sorted(path for path in folder.iterdir() if path.is_dir())
    assert [job.name for job in jobs] == [
        f"{number}-{model}-digits" for number, model in enumerate(["convnet", "unet"] * 2)
    ]
    assert [status_of(job)["state"] for job in jobs] == ["done", "done", "done", "failed"]
    assert "multiple of" in status_of(jobs[3])["error"]
    assert files_of(jobs[3]) == {"config.yaml", "status.json"}
    for job in jobs[:3]:
        assert {"config.yaml", "metrics.jsonl", "loss.png"} <= files_of(job)
    table = out[out.index("\njob ") + 1 :]
    head, *rows = (re.split(r"\s{2,}", line) for line in table.splitlines()[:5])
    assert head == ["job", "overrides", "step", "loss", "images/s", "left", "state"]
    for number, (job, row) in enumerate(zip(jobs, rows, strict=True)):
        size, model = 16 - number // 2, ["convnet", "unet"][number % 2]
        assert row[:2] == [str(number), f"data.image_size={size} model={model}"]
        assert row[6].startswith(status_of(job)["state"])
        if row[6] == "done":
            assert row[2] == "2/2"
            assert float(row[3]) == pytest.approx(losses_of(job)[-1][1], abs=1e-4)
            assert float(row[4]) > 0
        else:
            assert row[2:6] == ["\u2013"] * 4
    assert table.endswith(f"\n3 done, 1 failed\nfolder   {folder.relative_to(tmp_path)}\n")
    shown_again = run("job=status", f"sweep={folder.name}")[1]
    assert table.rpartition("folder ")[0] == shown_again, "job=status prints the same table"


@pytest.mark.slow
def test_sweep_without_failures_exits_with_0(run, tmp_path):
    out = go(run, "-m", *TINY, "job.max_steps=1", "seed=0,1")
    assert "\n2 done\n" in out
    one, other = sorted(path for path in sweep_folder(tmp_path).iterdir() if path.is_dir())
    assert losses_of(one) != losses_of(other)


def test_jobs_of_a_sweep_cannot_share_a_folder(run, tmp_path):
    status, out, _ = run("-m", *TINY, "job.max_steps=1", "seed=0,1", "output_dir=one")
    assert status == 1
    assert "1 done, 1 failed" in out
    config = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    assert config["seed"] == 0
    assert len(losses_of(tmp_path / "one")) == 1


@pytest.mark.slow
def test_each_job_of_a_sweep_is_a_run_of_one_wandb_group(run, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    changes = ["job.max_steps=2", "tracker=wandb", "optimizer.lr=1e-4,1e30", "job.warmup_steps=0"]
    changes.append("job.max_nonfinite_steps=1")
    try:
        status, _, _ = run("-m", *TINY, *changes)
    finally:
        sys.modules["wandb"].teardown()
    assert status == 1
    folder = sweep_folder(tmp_path)
    jobs = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [run_files(job) for job in jobs]
    assert [len(found) for found in files] == [1, 1]
    good, bad = (read_run(found[0]) for found in files)
    assert good.run.run_id != bad.run.run_id
    assert {good.run.run_group, bad.run.run_group} == {folder.name}
    assert "optimizer.lr=1e-4" in good.run.display_name.replace("0.0001", "1e-4")
    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert [r["step"] for r in good.rows if "train/loss" in r] == [1, 2]
    assert good.config["optimizer"]["lr"] == 1e-4
    assert good.run.job_type == "train"
    assert {"convnet", "digits"} <= set(good.run.tags)


# other processes


@functools.cache
def answer(*arguments):
    """What a command prints, and whether torch was imported on the way."""
    code = (
        "import sys\n"
        f"sys.argv = ['run.py', *{list(arguments)!r}]\n"
        "from ddpm.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'wandb', 'lightning_fabric', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_lists_groups_and_commands_without_torch():
    out = answer("--help")
    for folder in (ROOT / "conf").iterdir():
        if folder.is_dir() and folder.name not in ("hydra", "job_data", "model_data"):
            (line,) = [line for line in out.splitlines() if line.startswith(f"{folder.name}: ")]
            assert set(line.partition(": ")[2].split(", ")) == {p.stem for p in folder.iterdir()}
    assert out.count("\n  python run.py") >= 5


def test_cfg_job_prints_the_configuration_without_torch():
    config = yaml.safe_load(answer("--cfg", "job"))
    assert config["model"]["_target_"] == "ddpm.models.unet.UNet"
    assert config["schedule"]["T"] == 1000
    assert "hydra" not in config


@pytest.mark.slow  # test_signals.py does the same in a forked process
def test_interrupted_run_resumes_exactly(run, tmp_path):
    # The only plain `python run.py`: a signal needs a process of its own.
    long = ["job.max_steps=100000", "job.num_samples=1", "job.save_every=null"]
    child = process(tmp_path, *TINY, *long, "output_dir=run")
    try:
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate()
    finally:
        child.kill()
    assert child.returncode not in (0, 2)
    assert "Traceback" not in err
    assert "resume=run" in out
    status = status_of(tmp_path / "run")
    assert status["state"] == "preempted"
    step = status["step"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [
        f"step-{step:07d}.pt"
    ]
    assert [row["step"] for row in metrics_of(tmp_path / "run")] == list(range(1, step + 1))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the child: the order of sums depends on it
    try:
        changes = [f"job.max_steps={step + 3}", "job.num_samples=1"]
        go(run, "resume=run", *changes)
        go(run, *TINY, *changes, "output_dir=uninterrupted")
    finally:
        torch.set_num_threads(threads)
    assert status_of(tmp_path / "run") == {"state": "done", "step": step + 3, "saved": step + 3}
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "uninterrupted")
    assert_equal_state(
        state_of(tmp_path / "run", step + 3), state_of(tmp_path / "uninterrupted", step + 3)
    )


@pytest.mark.slow  # test_ranks.py has quicker ones
def test_two_processes_train_like_one(run, tiny, tmp_path):
    # Each imports __main__ again, so it has to be run.py.
    pair = ["hardware=ddp", "hardware.devices=2", "hardware.accelerator=cpu"]
    child = process(tmp_path, *TINY, *pair, "output_dir=two")
    try:
        out, err = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 0, out + err
    assert "Traceback" not in err
    assert out.count("python run.py job=sample") == 1
    two = tmp_path / "two"
    assert files_of(two) == files_of(tiny)
    assert status_of(two) == {"state": "done", "step": 6, "saved": 6}
    assert not (tmp_path / "outputs").exists()
    one, other = losses_of(tiny), losses_of(two)
    assert [step for step, _ in one] == [step for step, _ in other]
    np.testing.assert_allclose([loss for _, loss in other], [loss for _, loss in one], rtol=1e-4)
    for name, weight in state_of(tiny, 6)["model"].items():
        torch.testing.assert_close(state_of(two, 6)["model"][name], weight, rtol=1e-3, atol=1e-5)
    one, other = (load_png(folder / "samples" / "step-000006.png").int() for folder in (tiny, two))
    assert (one - other).abs().max() <= 2


@pytest.mark.slow
def test_resumed_run_with_dropout_equals_uninterrupted_run(run, tmp_path):
    small = ["model=resunet", "model.widths=[8,8]", "model.groups=2", "model.num_res_blocks=1"]
    words = [*(w for w in TINY if w != "model=convnet"), *small, "model.dropout=0.2"]
    go(run, *words, "job.max_steps=4", "output_dir=one")
    go(run, *words, "job.max_steps=2", "output_dir=two")
    go(run, "resume=two", "job.max_steps=4")
    assert_equal_state(state_of(tmp_path / "two", 4), state_of(tmp_path / "one", 4))
