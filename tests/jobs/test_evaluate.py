"""job=evaluate: scores of a checkpoint and of images; drawn images are reused."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.crash import TINY, go, output_of
from support.ranks import ranks
from support.runs import files_of, metrics_of, status_of

from ddpm.evaluation.reference import subset
from ddpm.images import save_png
from ddpm.jobs import evaluate
from ddpm.jobs.sources import DrawnPictures
from ddpm.metrics.bound import Bound
from ddpm.metrics.loss import Loss
from ddpm.runner.runs import scores
from ddpm.runner.terminal.progress import clock

PIPELINE = SimpleNamespace(diffusion=SimpleNamespace(T=10))
COMMON = ["hardware=cpu", "tracker=local", "features=pixels", "metric=[kd]"]
WORDS = [
    *("job=evaluate", "job.num_samples=22", "job.batch_size=8", "job.num_reference=40"),
    *("sampler=ddim", "sampler.steps=2", *COMMON),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    home = tmp_path_factory.mktemp("trained")
    words = ["optimizer.lr=1e-2", "job.warmup_steps=0", "data.conditional=true"]
    assert go(home, *TINY, *words, "data.holdout=0.1", "output_dir=run") == 0, output_of(home)
    return home / "run"


@pytest.fixture(scope="module")
def uninterrupted(trained, tmp_path_factory):
    """An uninterrupted evaluation."""
    home = tmp_path_factory.mktemp("uninterrupted")
    assert go(home, *WORDS, f"checkpoint={trained}", "output_dir=s") == 0, output_of(home)
    return home / "s"


def lines(folder):
    """The scores without their environment."""
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "environment"} for row in rows]


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "samples").iterdir()}


def test_checkpoint_is_scored(trained, uninterrupted):
    made = scores.read(uninterrupted)
    first = made[0]
    assert first.key == ("kd_pixels", "train")
    assert first.n == 22
    assert first.floor is not None
    assert first.ruler["features"]["name"] == "pixels"
    assert first.ruler["reference"]["n"] == 40
    assert first.ruler["reference"]["seed"] == 0
    assert first.subject["evaluations"] == 2
    assert first.subject["labels"] == {str(k): 3 if k < 2 else 2 for k in range(10)}
    assert first.subject["seeds"] == {"first": 1_000_000, "n": 22}
    assert first.ruler_id is not None
    assert first.without is None, "too few pictures for groups"
    values = scores.values(made)
    assert metrics_of(uninterrupted) == [{"step": first.step} | values]
    assert {"grid.png", "scores.jsonl", "samples/0000016-0000021.npy"} <= files_of(uninterrupted)
    output = output_of(uninterrupted.parent)
    assert "22 pictures (0 are there), 2 network evaluations each: 44 in all" in output
    assert "kd_pixels" in output.splitlines()[-3]


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("crash", "drawn"), [("evaluate.drawn:2", 2), ("evaluate.described:3", 3), ("run.grid", 3)]
)
def test_killed_evaluation_continues_by_the_same_command(
    crash, drawn, trained, uninterrupted, tmp_path
):
    words = [*WORDS, f"checkpoint={trained}"]
    assert go(tmp_path, *words, crash=crash) == -9, output_of(tmp_path)
    (folder,) = tmp_path.glob("outputs/evaluate/*/*")
    there = times(folder)
    assert len(there) == drawn
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    assert len(list(tmp_path.glob("outputs/evaluate/*/*"))) == 1
    assert there.items() <= times(folder).items()
    assert status_of(folder)["state"] == "done"
    assert lines(folder) == lines(uninterrupted)


def test_two_processes_give_the_scores_of_one(trained, uninterrupted, tmp_path, monkeypatch):
    words = [*WORDS, f"checkpoint={trained}", "output_dir=s"]
    assert ranks(tmp_path, *words, monkeypatch=monkeypatch) == [0, 0], output_of(tmp_path)
    assert lines(tmp_path / "s") == lines(uninterrupted)


@pytest.mark.slow
def test_images_of_a_run_and_of_a_folder_get_the_scores_of_the_checkpoint(uninterrupted, tmp_path):
    (tmp_path / "pictures").mkdir()
    arrays = [np.load(file) for file in sorted((uninterrupted / "samples").glob("*.npy"))]
    for i, image in enumerate(np.concatenate(arrays)):
        save_png(torch.from_numpy(image), tmp_path / "pictures" / f"{i:02d}.png")
    wanted = lines(uninterrupted)
    for source in (uninterrupted, tmp_path / "pictures"):
        words = [f"samples={source}", "data=digits", f"output_dir={source.name}-scored"]
        assert go(tmp_path, *WORDS, *words) == 0, output_of(tmp_path)
        found = lines(tmp_path / f"{source.name}-scored")
        for one, other in zip(wanted, found, strict=True):
            assert one["ruler_id"] == other["ruler_id"]
            assert one["value"] == pytest.approx(other["value"], abs=1e-9)
            assert other["subject"]["pictures"]


def test_features_of_real_images_are_computed_once(trained, uninterrupted, tmp_path):
    words = [*WORDS, f"checkpoint={trained}", "job.first_seed=5", "output_dir=s"]
    assert go(tmp_path, *words) == 0
    assert "features pixels of 22 samples, 0 real pictures" in output_of(tmp_path)


def test_the_seed_of_the_command_is_no_part_of_a_measurement(trained, run, tmp_path):
    """prdc compares with a subset of the real pictures, which the ruler does not name."""
    words = [*WORDS[:2], "sampler=ddim", "sampler.steps=2", *COMMON[:3], f"checkpoint={trained}"]
    for seed in (0, 5):
        last = ["metric=[prdc,fd]", f"seed={seed}", f"output_dir={tmp_path / str(seed)}"]
        status, _, err = run(*words, *last)
        assert status == 0, err
    assert lines(tmp_path / "0") == lines(tmp_path / "5")


def test_reference_subset_is_drawn_by_seed_from_the_whole_set():
    one = subset(1000, 100, 0)
    assert one == subset(1000, 100, 0) == sorted(set(one))
    assert one != subset(1000, 100, 1)
    assert max(one) > 900
    assert subset(5, 100, 0) == subset(5, None, 0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "checkpoint, samples: are not set"),
        (["samples=nowhere"], "nowhere: there is no such folder"),
        (["samples=pictures"], "pictures/a.png' has 24x24 pixels, and the reference data=digits"),
        (["samples=colour"], "is in colour, and the reference data=digits is grey"),
        (["samples=empty"], "samples: no pictures in"),
        (["samples=right", "metric=[is]"], "metric=is: needs features with classes"),
        (["samples=right", "metric=[]"], "metric=[]"),
        (["samples=right"], "metric=kd: needs at least 3 samples, and there are 1"),
        (["samples=right", "metric=[loss]"], "metric=loss: measures a network"),
        (["samples=right", "job.labels=3"], "job.labels"),
        (["samples=right", "metric.kd.reference=trian"], "trian: must be one of train, held_out"),
        (["samples=right", "features=mnits"], "Did you mean 'mnist'?"),
    ],
)
def test_bad_input_is_refused(words, message, run, tmp_path):
    for name, shape in (("pictures", (1, 24, 24)), ("colour", (3, 16, 16)), ("right", (1, 16, 16))):
        (tmp_path / name).mkdir()
        for file in "a" if name == "right" else "abc":
            save_png(torch.zeros(shape, dtype=torch.uint8), tmp_path / name / f"{file}.png")
    (tmp_path / "empty").mkdir()
    typed = {word.partition("=")[0] for word in words}
    usual = [word for word in COMMON if word.partition("=")[0] not in typed]
    status, _, err = run("job=evaluate", "data=digits", *usual, *words)
    assert status == 2, err
    assert message in err
    assert err.count("\n") <= 5
    assert "Traceback" not in err


@pytest.mark.slow
def test_too_few_images_are_reported_before_any_is_drawn(finished, run):
    folder = finished(*TINY, "data.holdout=0")
    words = ["job=evaluate", f"checkpoint={folder}", "tracker=local", "hardware=cpu"]
    for more in (["metric=[kd,loss]"], ["job.num_samples=2", "metric=[kd]"]):
        status, _, err = run(*words, *more, "output_dir=scored")
        assert status == 2
        assert "held-out" in err or "needs at least 3 samples" in err
        assert not list(Path("scored").glob("samples/*"))


@pytest.mark.parametrize("word", ["features=pixels", "metric=[kd]"])
def test_features_and_metrics_in_training_need_evaluate_every(word, run):
    status, _, err = run("tracker=local", word)
    assert status == 2
    assert "job.evaluate_every" in err


@pytest.mark.slow
def test_report_compares_the_scores_of_a_sampler_sweep(trained, tmp_path):
    words = ["-m", "sweep=lab", *WORDS, f"checkpoint={trained}", "sampler=ddim,dpm_solver"]
    words += ["sampler.steps=2,3"]
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    drawn = output_of(tmp_path).count("draws    ")
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    assert output_of(tmp_path).count("draws    ") == drawn == 4
    assert go(tmp_path, "job=report", "sweep=lab") == 0, output_of(tmp_path)
    report = (tmp_path / "outputs/sweep/lab/report.md").read_text()
    assert "do not compare" not in report
    assert "floor" in report


def test_announced_time_includes_feature_training_and_network_metrics(monkeypatch):
    """With a second for a picture and for a network evaluation, and 600 for training features."""
    messages = []
    monkeypatch.setattr(evaluate.cost, "seconds_per_picture", lambda *_: 1.0)
    monkeypatch.setattr(evaluate.cost, "network_call", lambda *_: None)
    drawn = DrawnPictures.__new__(DrawnPictures)
    vars(drawn).update(n=10, labels=None, weights="ema", evaluations=5, pipeline=PIPELINE)
    untrained = SimpleNamespace(name="data", stand_in=lambda: len, seconds_to_train=lambda: 600.0)
    of = evaluate.Evaluation(
        run=SimpleNamespace(dir=Path("nowhere"), say=messages.append, path="run", step=1),
        fabric=SimpleNamespace(device=torch.device("cpu"), world_size=2),
        source=drawn,
        references={"train": range(100), "held_out": range(40)},
        features=untrained,
        metrics={"loss": Loss(num_images=20), "bound": Bound(num_images=10, steps="all")},
        batch_size=4,
        draws=True,
        material=None,
    )
    of.announce()
    assert "loss, bound by up to 160 network evaluations" in messages[2]
    assert "data (trained first) of 10 samples, 140 real pictures" in messages[3]
    seconds = (10 * 5 + 10 + 140) / 2 + 3 * 20 + 10 * 10 + 600
    assert messages[-1] == f"time     about {clock(seconds)}, then the scores"
