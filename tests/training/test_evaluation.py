"""Scores of samples in training: they change no weight, and nothing is drawn twice."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.base import ROOT
from support.crash import TINY, go, output_of
from support.rank_runs import CPU, FULL
from support.ranks import ranks
from support.runs import assert_equal_state, losses_of, metrics_of, state_of, status_of
from support.survival import lines_of

from ddpm.features.pixels import Pixels
from ddpm.features.small import Digits
from ddpm.metrics.base import Material, Pictures
from ddpm.runner.config.build import build
from ddpm.runner.config.catalog import CONF, read
from ddpm.runner.runs import scores
from ddpm.training.best import Best
from ddpm.training.health import Watch

DATA = Path(os.environ.get("DDPM_DATA", ROOT / "data"))
SCORED = ["job.evaluate_every=2", "job.evaluate_samples=70", "job.evaluate_steps=2"]
WORDS = [*TINY, "job.max_steps=6", "job.keep_checkpoints=-1", "job.save_every=100"]
LONGER = [*WORDS, *SCORED, "features=pixels", "output_dir=run"]
FIGURE = "eval/kd_pixels"


def figures_of(folder, name=FIGURE):
    return {row["step"]: row[name] for row in metrics_of(folder) if name in row}


def saved(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def rows_of(folder):
    """The scores without their environment."""
    rows = [json.loads(line) for line in (folder / scores.FILE).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "environment"} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """An uninterrupted run that scores samples after every second step."""
    home = tmp_path_factory.mktemp("uninterrupted")
    assert go(home, *LONGER, f"job.keep_best={FIGURE}") == 0, output_of(home)
    return home / "run"


def test_planned_scores_are_printed_before_training(uninterrupted):
    line = "kd by features=pixels, every 2 steps: 70 samples of 2 network evaluations each, about"
    output = output_of(uninterrupted.parent)
    assert f"scores   {line} as long as 6 steps; and 1,797 real pictures" in output


def test_scores_are_in_the_log_and_have_passports(uninterrupted):
    for name in (FIGURE, f"{FIGURE}_held_out"):
        assert list(figures_of(uninterrupted, name)) == [2, 4, 6]
    rows = scores.read(uninterrupted)
    assert [row.step for row in rows] == [2, 2, 4, 4, 6, 6]
    assert len({row.ruler_id for row in rows}) == 2, "train and held_out, at all steps alike"
    assert rows[0].ruler["reference"]["n"] == 1617
    assert rows[0].subject["sampler"] == {"name": "dpm_solver", "steps": 2}
    assert {row.step: row.value for row in rows if row.reference == "train"} == figures_of(
        uninterrupted
    )
    assert not (uninterrupted / "evaluation").exists(), "drawn files go when they are measured"


def test_trainings_of_all_seeds_are_measured_by_one_ruler(run):
    """Otherwise a report has no mean over them."""
    rulers = []
    for seed in (0, 1):
        few = ["job.max_steps=2", "job.evaluate_reference=50", f"seed={seed}"]
        status, _, err = run(*LONGER[:-1], *few, f"output_dir=seed-{seed}")
        assert status == 0, err
        rulers.append([row.ruler_id for row in scores.read(Path(f"seed-{seed}"))])
    assert rulers[0] == rulers[1]


def test_evaluation_does_not_change_the_weights(uninterrupted, tmp_path):
    assert go(tmp_path, *WORDS, "output_dir=run") == 0, output_of(tmp_path)
    assert_equal_state(state_of(uninterrupted, 6), state_of(tmp_path / "run", 6))
    assert losses_of(uninterrupted) == losses_of(tmp_path / "run")
    stored = (tmp_path / "run" / "config.yaml").read_text()
    assert "\nmetric:" not in stored
    assert "features" not in stored


def test_best_checkpoint_is_saved_when_it_is_measured(uninterrupted):
    figures = figures_of(uninterrupted)
    best = torch.load(uninterrupted / "checkpoints" / "best.pt", weights_only=True)
    assert best["step"] == min(figures, key=figures.get)
    assert best["best"]["kept"] == min(figures.values())
    record = [step for n, step in enumerate(figures) if figures[step] < min(
        [*list(figures.values())[:n], np.inf])]  # fmt: skip
    assert saved(uninterrupted) == ["best.pt", *(f"step-{n:07d}.pt" for n in sorted({*record, 6}))]


@pytest.mark.parametrize(
    "place", ["evaluation.drawn:2", pytest.param("evaluation.measured:2", marks=pytest.mark.slow)]
)
def test_killed_and_resumed_run_gives_the_same_scores(place, uninterrupted, tmp_path):
    words = [*LONGER, f"job.keep_best={FIGURE}"]
    assert go(tmp_path, *words, crash=place) == -9, output_of(tmp_path)
    assert go(tmp_path, "resume=run") == 0, output_of(tmp_path)
    assert_equal_state(state_of(uninterrupted, 6), state_of(tmp_path / "run", 6))
    assert lines_of(uninterrupted) == lines_of(tmp_path / "run")
    own = {"run": "", "checkpoint": ""}
    one, other = (
        [row["subject"] | own for row in rows_of(f)] for f in (uninterrupted, tmp_path / "run")
    )
    assert one == other


@pytest.mark.slow
def test_stopped_evaluation_keeps_the_batches_already_drawn(uninterrupted, tmp_path, monkeypatch):
    """Stopped after the first of two batches, which is then reused."""
    folder, answers = tmp_path / "run", iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "stop_wanted", lambda watch: next(answers))
        assert go(tmp_path, *LONGER, f"job.keep_best={FIGURE}") == 143, output_of(tmp_path)
    assert status_of(folder) == {"state": "preempted", "step": 2, "saved": 2}
    (drawn,) = (folder / "evaluation").iterdir()
    assert [path.name for path in sorted(drawn.iterdir())] == [
        *("features-samples-0000000.npy", "images-samples-0000000.npy"),
    ]
    # other features show that they are used
    np.save(drawn / "features-samples-0000000.npy", np.zeros((64, 256), np.float32))
    assert go(tmp_path, "resume=run") == 0, output_of(tmp_path)
    one, other = figures_of(uninterrupted), figures_of(folder)
    assert [row["step"] for row in metrics_of(folder)] == [1, 2, 2, 3, 4, 5, 6]
    assert other[2] != pytest.approx(one[2], rel=0.01)
    assert (other[4], other[6]) == (one[4], one[6])
    assert_equal_state(state_of(uninterrupted, 6), state_of(folder, 6))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_give_the_scores_of_one(strategy, tmp_path, monkeypatch):
    words = [w for w in LONGER if not w.startswith(("hardware", "output_dir"))]
    words += ["optimizer.lr=1e-12", "job.max_steps=2", "job.evaluate_samples=130"]
    both = [*words, f"hardware={strategy}", *CPU, "output_dir=two"]
    assert ranks(tmp_path, *both, monkeypatch=monkeypatch) == [0, 0], output_of(tmp_path)
    assert go(tmp_path, *words, "hardware=cpu", FULL, "output_dir=one") == 0, output_of(tmp_path)
    one, two = (figures_of(tmp_path / name) for name in ("one", "two"))
    assert list(two) == [2]
    assert two == pytest.approx(one, rel=1e-6)


def test_patience_ends_a_run_whose_score_stops_improving(tmp_path):
    words = [*LONGER, "optimizer.lr=1e-30", "job.patience=1", f"job.keep_best={FIGURE}"]
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    assert f"stopped  job.patience=1: {FIGURE} was best after step 2" in output_of(tmp_path)
    assert status_of(tmp_path / "run") == {"state": "done", "step": 4, "saved": 4}


@pytest.mark.slow
def test_evaluation_can_be_switched_on_when_a_run_is_resumed(tiny, tmp_path):
    more = [*SCORED, "features=pixels", "job.max_steps=8"]
    assert go(tmp_path, "resume=run", *more) == 0, output_of(tmp_path)
    assert list(figures_of(tiny)) == [6, 8], "it begins with the checkpoint that it found"
    assert go(tmp_path, "resume=run", "job.max_steps=10") == 0, output_of(tmp_path)
    assert list(figures_of(tiny)) == [6, 8, 10]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["metric=[fd]"], "metric: a training run scores its samples only with job.evaluate_every"),
        (
            ["job.keep_best=eval/kd_digits"],
            "job.keep_best=eval/kd_digits: needs job.evaluate_every",
        ),
        ([*SCORED, "job.keep_best=eval/kd_mnist"], "Did you mean 'eval/kd_digits'?"),
        ([*SCORED, "job.keep_best=eval/nearest_train", "metric=[copies]"], "by which checkpoints"),
        ([*SCORED, "metric=[loss]"], "metric=loss: measures a network"),
        ([*SCORED, "job.evaluate_samples=2"], "metric=kd: needs at least 3 samples"),
        (["job.keep_best=fid"], "job.keep_best=fid: must be a figure of the log"),
    ],
)
def test_invalid_settings_are_refused(words, answer, run, tmp_path):
    status, out, err = run(*TINY, *words, "output_dir=run")
    assert status == 2, out + err
    assert answer in err
    assert len(err.splitlines()) <= 5
    assert not (tmp_path / "run").exists()


# declared figures


@pytest.mark.parametrize("name", ["kd", "fd", "prdc", "is", "copies"])
def test_metrics_return_the_figures_they_declare(name):
    generator = torch.Generator().manual_seed(0)
    features = Digits()

    def pictures(n):
        images = torch.randint(256, (n, 1, 16, 16), generator=generator, dtype=torch.uint8)
        return Pictures(images, features(images), torch.zeros(n, dtype=torch.int64))

    material = Material(pictures(40), pictures(40), pictures(400), features=features)
    metric = build(read(CONF / "metric" / f"{name}.yaml"), "metric")
    measured = {score.name: score.better for score in metric.measure(material)}
    assert metric.figures(features) == measured
    declared = build(read(CONF / "metric" / "fd.yaml"), "metric").figures(Pixels())
    assert declared == {"fd_pixels": "lower", "fd_inf_pixels": "lower"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kernel_distance_falls_with_the_steps(run, tmp_path):
    if not (DATA / "MNIST").is_dir():
        pytest.skip(f"no {DATA / 'MNIST'}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "MNIST").symlink_to((DATA / "MNIST").absolute())
    words = ["data=mnist", f"data_dir={tmp_path / 'data'}", "hardware=cpu", "tracker=local"]
    words += ["model.widths=[16,64]", "model.patch_size=4", "job.max_steps=800"]
    words += ["job.batch_size=32", "optimizer.lr=2e-3", "job.warmup_steps=50"]
    words += ["job.ema_decay=0.99", "job.sample_every=null", "job.validate_every=null"]
    words += ["job.evaluate_every=100", "job.evaluate_samples=256", "output_dir=run"]
    status, out, err = run(*words)
    assert status == 0, out + err
    for name in ("eval/kd_mnist", "eval/kd_mnist_held_out"):
        figures = figures_of(tmp_path / "run", name)
        assert list(figures) == list(range(100, 801, 100))
        ranks = np.argsort(np.argsort(list(figures.values())))
        assert np.corrcoef(ranks, np.arange(8))[0, 1] <= -0.9, figures


def test_higher_values_can_be_better():
    best = Best("eval/coverage_digits", 2, sign=1)
    for step, value in enumerate([0.5, 0.7, 0.6, float("nan")], start=1):
        best.record(step, {"eval/coverage_digits": value})
        best.record_checkpoint(step, {"eval/coverage_digits": value})
    best.record(5, {"eval/loss": 0.1})  # of another measurement
    assert (best.value, best.step, best.waited, best.kept_step) == (0.7, 2, 2, 2)
