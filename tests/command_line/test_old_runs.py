"""Runs, exports, sweeps and studies of an earlier version still work: resumed, sampled, skipped.

`fixtures/old_runs.tar.xz` was made by the code of November 2026 with its modules still flat under
`ddpm/`, by these commands in one folder (`T` stands for the words of TINY below):

    run.py T job.max_steps=4 job.accumulate=2 job.max_skips=3 job.decay_steps=2
        weighting.loss_type=huber objective=v output_dir=train
    run.py T data=folder data.root=../pics data.image_size=8 data.channels=1 data.fit=pad
        data.conditional=true data.num_classes=2 job.max_steps=2 output_dir=pictures
    run.py job=train_classifier model=classifier model.widths=[8,8] schedule=linear hardware=cpu
        tracker=local job.max_steps=2 job.batch_size=8 job.log_every=1 job.save_every=2
        optimizer.lr=1e-3 output_dir=classifier
    run.py job=export checkpoint=train output_dir=exported
    run.py job=sample checkpoint=train job.num_samples=2 output_dir=samples
    run.py -m sweep=done T job.max_steps=2 seed=1,2
    run.py -m sweep=half T job.max_steps=4 seed=1,2,3      # killed while its second job trained
    run.py -m hydra/sweeper=optuna hydra.sweeper.sampler=random hydra.sweeper.seed=1
        hydra.sweeper.n_trials=2 sweep=study T job.max_steps=2
        'optimizer.lr=tag(log, interval(1e-5, 1e-2))'

`expected.json` holds what that code made of them: the identity of every configuration, and the
losses of `run.py resume=train job.max_steps=6`.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.runner.runs import run_dir
from ddpm.runner.runs.metrics_log import read_metrics
from ddpm.runner.sweeps import folder

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "old_runs.tar.xz"
WHERE = str(Path("/") / "tmp" / "old-runs" / "runs")  # the folder of then
TINY = [
    *("model=convnet", "model.width=4", "schedule=linear", "weighting=uniform", "hardware=cpu"),
    *("tracker=local", "sampler=ddim", "sampler.steps=2", "optimizer.lr=2e-4", "job.batch_size=8"),
    *("job.log_every=1", "job.save_every=2", "job.num_samples=4"),
]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    where = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(where, filter="data")
    return where


@pytest.fixture
def old(unpacked, run, tmp_path):
    """The old runs, in the folder that `run` works in."""
    shutil.copytree(unpacked / "runs", tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def expected(unpacked):
    return json.loads((unpacked / "expected.json").read_text())


def pixels(path):
    return np.asarray(Image.open(path), dtype=int)


def test_the_archive_of_old_runs_is_small():
    assert ARCHIVE.stat().st_size < 2_000_000


def test_training_run_resumes_as_in_the_old_version(old, run, expected):
    status, out, err = run("resume=train", "job.max_steps=6")
    assert status == 0, out + err
    rows = {row["step"]: row["train/loss"] for row in read_metrics(old / "train" / "metrics.jsonl")}
    for step, loss in expected["resumed_losses"].items():
        assert rows[int(step)] == pytest.approx(loss, rel=1e-4)


def test_old_runs_have_no_holdout(old, run):
    status, _, err = run("resume=train", "job.max_steps=6", "data.holdout=0.1")
    assert status == 2
    assert "data.holdout=0.1: resume=train was trained with 0.0" in err
    status, out, err = run("resume=train", "job.max_steps=5", "data.holdout=0")
    assert status == 0, out + err
    assert "1,797 images" in out


def test_old_runs_decay_by_the_inverse_of_the_step(old, run):
    """`train` has job.decay_steps=2, and 4 steps of a warm-up of 500."""
    words = ("resume=train", "job.max_steps=6")
    status, _, err = run(*words, "job.lr_decay=cosine")
    assert status == 2
    assert "job.lr_decay=cosine: resume=train was trained with inverse" in err
    status, out, err = run(*words, "job.lr_decay=inverse")
    assert status == 0, out + err
    assert "decay" not in out  # as of a schedule with an end
    assert "changed  job.lr_decay" not in out


@pytest.mark.parametrize("checkpoint", ["train", "exported/model.safetensors"])
def test_checkpoint_and_export_draw_the_old_images(old, run, checkpoint):
    words = (f"checkpoint={checkpoint}", "job.num_samples=2", "tracker=local", "output_dir=new")
    status, out, err = run("job=sample", *words)
    assert status == 0, out + err
    for name in ("000000.png", "000001.png"):
        drawn = pixels(old / "new" / "samples" / name)
        assert np.abs(drawn - pixels(old / "samples" / "samples" / name)).max() <= 1


@pytest.mark.slow
def test_interrupted_sampling_draws_the_missing_images(old, run):
    folder_of_run = old / "samples"
    config = (folder_of_run / "config.yaml").read_text()  # which says where the checkpoint was
    (folder_of_run / "config.yaml").write_text(config.replace(WHERE, str(old)))
    (folder_of_run / "status.json").write_text('{"state": "preempted", "time": 0}')
    (folder_of_run / "samples" / "000001.png").unlink()
    words = ("job=sample", "checkpoint=train", "job.num_samples=2", "output_dir=samples")
    status, out, err = run(*words)
    assert status == 0, out + err
    assert (folder_of_run / "samples" / "000001.png").is_file()


def test_run_on_a_moved_image_folder_resumes(old, run, unpacked):
    status, out, err = run("resume=pictures", "job.max_steps=3", f"data.root={unpacked / 'pics'}")
    assert status == 0, out + err


@pytest.mark.slow
def test_a_classifier_resumes_and_guides(old, run):
    status, out, err = run("resume=classifier", "job.max_steps=3")
    assert status == 0, out + err
    guide = ("guidance=classifier", "guidance.classifier=classifier", "job.labels=[3]")
    words = ("checkpoint=train", "job.num_samples=1", "tracker=local", "output_dir=guided")
    status, out, err = run("job=sample", *guide, *words)
    assert status == 0, out + err


def test_old_run_can_be_exported(old, run):
    status, out, err = run("job=export", "checkpoint=train", "output_dir=again")
    assert status == 0, out + err
    assert (old / "again" / "model.safetensors").is_file()


def test_identity_of_every_old_config_is_unchanged(old, expected):
    found = {
        str(file.parent.relative_to(old)): folder.identity(run_dir.read_config(file.parent))
        for file in old.rglob("config.yaml")
    }
    assert found == expected["identity"]


def job_states(sweep):
    return {
        path.parent.name: json.loads(path.read_text())["state"]
        for path in sorted(sweep.glob("*/status.json"))
    }


def test_a_finished_sweep_is_skipped(old, run):
    sweep = old / "outputs" / "sweep" / "done"
    before = {path: path.stat().st_mtime_ns for path in sweep.rglob("*.pt")}
    status, out, err = run("-m", "sweep=done", *TINY, "job.max_steps=2", "seed=1,2")
    assert status == 0, out + err
    assert {path: path.stat().st_mtime_ns for path in sweep.rglob("*.pt")} == before
    assert len(job_states(sweep)) == 2


def test_a_half_finished_sweep_is_finished(old, run):
    sweep = old / "outputs" / "sweep" / "half"
    done = sweep / "0-convnet-digits" / "checkpoints" / "step-0000004.pt"
    before = done.stat().st_mtime_ns
    status, out, err = run("-m", "sweep=half", *TINY, "job.max_steps=4", "seed=1,2,3")
    assert status == 0, out + err
    assert done.stat().st_mtime_ns == before
    assert list(job_states(sweep).values()) == ["done"] * 3
    steps = [row["step"] for row in read_metrics(sweep / "1-convnet-digits" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4]


@pytest.mark.slow
def test_optuna_study_continues(old, run):
    pytest.importorskip("optuna")
    search = ["hydra/sweeper=optuna", "hydra.sweeper.sampler=random", "hydra.sweeper.seed=1"]
    words = (*TINY, "job.max_steps=2", "optimizer.lr=tag(log, interval(1e-5, 1e-2))")
    status, out, err = run("-m", *search, "hydra.sweeper.n_trials=3", "sweep=study", *words)
    assert status == 0, out + err
    assert list(job_states(old / "outputs" / "sweep" / "study").values()) == ["done"] * 3


def test_report_and_status_read_old_runs(old, run):
    status, out, err = run("job=report", "runs=[train,pictures,classifier]", "output_dir=page")
    assert status == 0, out + err
    assert "pictures" in (old / "page" / "report.html").read_text()
    assert "accumulate" not in (old / "page" / "report.html").read_text().replace(
        "accumulate_grad_batches", ""
    )
    status, out, err = run("job=status", "sweep=half")
    assert status == 0, out + err
    assert "1 done, 1 killed, 1 waiting" in out + err
