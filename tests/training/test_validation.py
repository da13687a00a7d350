"""The held-out loss in training: it changes no weight, and is the same after a kill."""

import csv
import json

import pytest
import torch
from support.crash import TINY, go, output_of
from support.image_sets import build
from support.rank_runs import CPU, FULL
from support.ranks import ranks
from support.runs import assert_equal_state, losses_of, metrics_of, state_of, status_of
from support.survival import lines_of

from ddpm.ema.simple import Simple
from ddpm.metrics.base import Material, Pictures
from ddpm.metrics.loss import Loss
from ddpm.pretrained import load_network
from ddpm.runner.config.build import build as build_node
from ddpm.training.best import Best
from ddpm.training.validation import TABLE, Validation, next_step, num_images, raw_weights

FIGURES = ["eval/loss", "eval/loss_raw", "eval/loss_gap"]
CONVNET = {
    **{"_target_": "ddpm.models.convnet.ConvNet", "channels": 1, "out_channels": 1, "width": 4},
    **{"image_size": 8, "num_classes": None, "time_conditioning": True},
}
EVERY = "job.validate_every=2"
LONGER = [*TINY, EVERY, "job.max_steps=8", "job.keep_checkpoints=2", "output_dir=run"]


def table_of(folder):
    return list(csv.DictReader((folder / "loss_by_t.csv").open()))


def figures_of(folder):
    return {
        row["step"]: [row[f] for f in FIGURES] for row in metrics_of(folder) if FIGURES[0] in row
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """An uninterrupted run that validates after every second step."""
    home = tmp_path_factory.mktemp("uninterrupted")
    assert go(home, *LONGER) == 0, output_of(home)
    assert "held out 180 images" in output_of(home)
    return home / "run"


# when, and of how many images


def test_validation_takes_at_most_one_percent():
    assert [num_images(500, batch) for batch in (256, 128, 103, 32, 8, 1)] == [
        *(512, 512, 512),
        *(160, 40, 32),
    ]
    assert num_images(50, 128) == 64
    for batch in (7, 32, 128, 1000):  # three forward passes an image; a step is worth three
        assert num_images(500, batch) <= 0.01 * 500 * batch


def test_steps_at_which_validation_is_due():
    assert [next_step(done, 1200, 500, 128) for done in (0, 499, 500, 1000, 1200)] == [
        *(500, 500, 1000),
        *(1200, 0),
    ]
    assert next_step(0, 400, 500, 128) == 400, "short, and still long enough for one at its end"
    assert next_step(0, 6, 500, 8) == 0
    assert next_step(0, 6, 2, 8) == 2


def test_short_run_has_no_validation(tiny):
    assert figures_of(tiny) == {}
    assert not (tiny / "loss_by_t.csv").exists()


# what it does


def test_validation_changes_no_weight(uninterrupted, tmp_path):
    words = [word for word in LONGER if word != EVERY]
    assert go(tmp_path, *words, "job.validate_every=null") == 0, output_of(tmp_path)
    assert_equal_state(state_of(uninterrupted, 8), state_of(tmp_path / "run", 8))
    assert losses_of(uninterrupted) == losses_of(tmp_path / "run")
    assert figures_of(tmp_path / "run") == {}
    assert not (tmp_path / "run" / "checkpoints" / "best.pt").exists()


def test_figures_equal_those_of_the_metric(uninterrupted, data_dir):
    data = build("digits", data_dir)

    def pictures(part):
        images, labels = part.__getitems__(range(len(part)))
        return Pictures(images, labels=labels)

    ema, diffusion, _, _ = load_network(uninterrupted)
    raw, *_ = load_network(uninterrupted, weights="model")
    metric = Loss(num_images=32)
    material = Material(
        *(pictures(part) for part in (data, data.held_out())),
        network=ema,
        raw_network=raw,
        diffusion=diffusion,
    )
    expected = {f"eval/{score.name}": score.value for score in metric.measure(material)}
    last = metrics_of(uninterrupted)[-1]
    assert {k: last[k] for k in FIGURES} == pytest.approx(expected, rel=1e-5)
    assert list(figures_of(uninterrupted)) == [2, 4, 6, 8]
    rows = table_of(uninterrupted)
    assert len(rows) == 4 * 16
    assert {row["step"] for row in rows} == {"2", "4", "6", "8"}
    for row, its in zip(rows[-16:], metric.rows, strict=True):
        assert {k: float(v) for k, v in row.items()} == pytest.approx({"step": 8} | its, rel=1e-4)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("train.step:3", marks=pytest.mark.slow),
        pytest.param("run.logged:4", marks=pytest.mark.slow),
        "checkpoint.renamed:2",
    ],
)
def test_validation_of_a_resumed_run_is_the_same(place, uninterrupted, tmp_path):
    assert go(tmp_path, *LONGER, crash=place) == -9, output_of(tmp_path)
    again = ["resume=run"] if (tmp_path / "run" / "checkpoints").exists() else LONGER
    assert go(tmp_path, *again) == 0, output_of(tmp_path)
    assert_equal_state(state_of(uninterrupted, 8), state_of(tmp_path / "run", 8))
    assert lines_of(uninterrupted) == lines_of(tmp_path / "run")
    assert table_of(uninterrupted) == table_of(tmp_path / "run")
    best = [(f / "checkpoints" / "best.pt") for f in (uninterrupted, tmp_path / "run")]
    one, other = (torch.load(file, weights_only=True) for file in best)
    assert one["best"] == other["best"]
    assert_equal_state(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_give_the_loss_of_one(strategy, tmp_path, monkeypatch):
    words = [w for w in LONGER if not w.startswith(("hardware", "output_dir"))]
    words += ["optimizer.lr=1e-12", "job.max_steps=2"]  # weights that do not differ by rounding
    both = [*words, f"hardware={strategy}", *CPU, "output_dir=two"]
    assert ranks(tmp_path, *both, monkeypatch=monkeypatch) == [0, 0], output_of(tmp_path)
    assert go(tmp_path, *words, "hardware=cpu", FULL, "output_dir=one") == 0, output_of(tmp_path)
    one, two = (figures_of(tmp_path / name)[2] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-6, abs=1e-7)


def test_missing_held_out_images_are_noted_once(tmp_path):
    assert go(tmp_path, *LONGER, "data.holdout=0") == 0, output_of(tmp_path)
    assert output_of(tmp_path).count("held out none, as data.holdout=0") == 1
    assert figures_of(tmp_path / "run") == {}


@pytest.mark.slow
def test_the_labels_of_a_conditional_network_are_used(tmp_path):
    assert go(tmp_path, *LONGER, "data.conditional=true") == 0, output_of(tmp_path)
    assert len(figures_of(tmp_path / "run")) == 4


def test_raw_weights_are_used_and_the_average_is_restored():
    net = build_node(CONVNET, "model")
    ema = Simple(net, decay=0.9, ramp=10)
    with torch.no_grad():
        for weight in net.parameters():
            weight += torch.randn_like(weight)
    before = [weight.clone() for weight in (*ema.weights, *ema.sources)]
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    expected = net.eval()(x_t, t)
    net.train()
    with raw_weights(net, ema) as network:
        assert not network.training
        assert torch.equal(network(x_t, t), expected)
    assert net.training
    assert all(map(torch.equal, before, (*ema.weights, *ema.sources)))


@pytest.mark.parametrize(
    "damaged",
    [b"x7,0,1.0\n", b",0,1.0\n", b"\x00\xff\n", b"1.5,0,1.0\n", b'"' + b"9" * 200_000 + b'",0,1\n'],
)
def test_damaged_rows_of_the_table_are_ignored(tmp_path, damaged):
    rows = [{"step": 4, "t": 0, "loss": 0.5}]
    file = tmp_path / TABLE
    for header in (b"step,t,loss\n", b"stop,t,loss\n"):
        whole = header.startswith(b"step")
        file.write_bytes(header + b"2,0,0.7\n" + damaged)
        validation = Validation.__new__(Validation)
        validation.rows = rows
        validation.write(tmp_path)
        assert [row["step"] for row in table_of(tmp_path)] == (["2", "4"] if whole else ["4"])


# the best checkpoint


def test_the_best_checkpoint_stays_and_can_be_named(uninterrupted, run, tmp_path):
    figures = {step: values[0] for step, values in figures_of(uninterrupted).items()}
    best = torch.load(uninterrupted / "checkpoints" / "best.pt", weights_only=True)
    assert best["step"] == min(figures, key=figures.get)
    words = ["job=sample", "job.num_samples=1", "tracker=local", "output_dir=drawn"]
    status, out, err = run(*words, f"checkpoint={uninterrupted}:best")
    assert status == 0, out + err
    assert "checkpoints/best.pt" in (tmp_path / "drawn" / "config.yaml").read_text()
    status, out, err = run(*words, f"checkpoint={tmp_path}/nothing:best")
    assert status == 2
    assert "nothing:best: there is no such file or folder" in err
    (tmp_path / "none" / "checkpoints").mkdir(parents=True)
    status, out, err = run(*words, f"checkpoint={tmp_path}/none:best")
    assert status == 2
    assert "none:best: that run kept no best checkpoint; job.validate_every" in err


@pytest.mark.slow
def test_an_older_best_is_kept_when_its_file_is_deleted(tmp_path):
    words = ["job.keep_best=eval/loss_raw", "optimizer.lr=100", "job.warmup_steps=7"]
    words += ["job.clip_grad_norm=null", "job.max_nonfinite_steps=50", "job.save_every=1"]
    assert go(tmp_path, *LONGER, *words, "job.validate_every=1") == 0, output_of(tmp_path)
    figures = {step: values[1] for step, values in figures_of(tmp_path / "run").items()}
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == [
        *("best.pt", "step-0000007.pt", "step-0000008.pt"),
    ]
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["step"] == min(figures, key=figures.get) < 7


@pytest.mark.parametrize("damage", [None, 3, {}, {"figure": "eval/loss", "value": "a"}])
def test_damaged_record_is_ignored(damage):
    best = Best("eval/loss", 2)
    best.restore(damage)
    assert best == Best("eval/loss", 2)


def test_records_are_restored_and_those_of_another_figure_left_out():
    best, other = Best("eval/loss", 2), Best("eval/loss_raw", 2)
    for step, loss in enumerate([3.0, 2.0, 2.5, float("nan")], start=1):
        assert not best.levelled_off
        best.record(step, {"eval/loss": loss})
    best.record_checkpoint(4, {})
    assert (best.value, best.step, best.waited, best.kept) == (2.0, 2, 2, float("inf"))
    assert best.levelled_off
    again = Best("eval/loss", 3)
    again.restore(json.loads(json.dumps(best.state())))
    assert again.state() == best.state()
    assert not again.levelled_off
    other.restore(best.state())
    assert other == Best("eval/loss_raw", 2)


# the plateau


@pytest.mark.slow
def test_early_stopping_ends_the_run_with_its_reason(tmp_path):
    # so small that no weight changes
    words = [*LONGER, "optimizer.lr=1e-30", "job.patience=2", "job.save_every=null"]
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    reason = "job.patience=2: eval/loss was best after step 2"
    assert f"stopped  {reason}" in output_of(tmp_path)
    assert status_of(tmp_path / "run") == {"state": "done", "step": 6, "saved": 6}
    assert (tmp_path / "run" / "samples" / "step-000006.png").exists()
    assert go(tmp_path, "resume=run") == 0, output_of(tmp_path)
    assert f"steps    {reason}" in output_of(tmp_path)
    assert status_of(tmp_path / "run")["step"] == 6
    assert go(tmp_path, "resume=run", "job.patience=9") == 0, output_of(tmp_path)
    assert status_of(tmp_path / "run") == {"state": "done", "step": 8, "saved": 8}


def test_patience_needs_validations(run):
    status, _, err = run(*LONGER, "job.validate_every=null", "job.patience=2")
    assert status == 2
    assert err.strip() == "job.patience=2: needs job.validate_every, whose figures it reads."
