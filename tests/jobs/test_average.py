"""ema=power from training to images: job.weights=ema:<length>, job=average and job=export."""

import json
import shutil

import pytest
import torch
from support.base import TINY
from support.runs import SAMPLE, go, pngs, state_of

from ddpm import Pipeline
from ddpm.runner.checkpoints import averages, checkpoint, safetensors_file

WORDS = [*TINY, "optimizer.lr=1e-2", "job.warmup_steps=0", "schedule.T=40", "model.width=8"]
WORDS += ["job.max_steps=12", "job.save_every=null", "job.sample_every=null"]
DRAW = [*SAMPLE, "job.num_samples=2"]


@pytest.mark.slow
def test_any_length_is_drawn_averaged_and_exported(run, tmp_path):
    go(run, *WORDS, "ema=power", "output_dir=run")
    go(run, *WORDS, "output_dir=plain")
    one, other = state_of(tmp_path / "run", 12), state_of(tmp_path / "plain", 12)
    for name, weight in one["model"].items():
        assert torch.equal(weight, other["model"][name]), "averages do not change the training"
    assert one["averages"].keys() == {"0.1"}

    go(run, *DRAW, "checkpoint=run", "job.weights=ema:0.08", "output_dir=drawn")
    out = go(run, "job=average", "checkpoint=run", "job.sigma_rel=[0.05,0.08]", "output_dir=av")
    assert "ema-0.05/model.safetensors: tracked during the run" in out
    assert "ema-0.08/model.safetensors: from 11 snapshots, with an error of" in out
    go(run, "job=export", "checkpoint=run", "job.weights=ema:0.08", "output_dir=ex")
    file, exported = (tmp_path / p / safetensors_file.NAME for p in ("av/ema-0.08", "ex"))
    assert file.read_bytes() == exported.read_bytes()
    about = json.loads((tmp_path / "ex" / "config.json").read_text())
    assert (about["weights"], about["average"]) == ("ema", "ema:0.08")

    for number, weights in enumerate(["ema", "ema:0.08"]):
        words = [f"checkpoint={file}", f"job.weights={weights}", f"output_dir=again{number}"]
        go(run, *DRAW, *words)
        assert torch.equal(pngs(tmp_path / f"again{number}"), pngs(tmp_path / "drawn"))
    in_python = Pipeline.from_checkpoint(tmp_path / "run", weights="ema:0.08")
    assert torch.equal(
        in_python.model.state_dict()["conv_1.weight"],
        checkpoint.load(file)["ema"]["conv_1.weight"],
    )
    for words, message in [
        ([*DRAW, f"checkpoint={file}", "job.weights=ema:0.07"], "holds ema:0.08; other lengths"),
        (["job=average", "checkpoint=plain", "job.sigma_rel=[0.07]"], "holds one average, ema;"),
    ]:
        status, _, err = run(*words, "output_dir=no")
        assert status == 2
        key = "job.sigma_rel=" if "job=average" in words else "job.weights=ema:"
        assert f"{key}0.07: checkpoint={tmp_path}" in err
        assert message in err
        assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_averages_of_a_resumed_run_and_of_its_best_checkpoint(run, tmp_path):
    """A run that was stopped and goes on for longer has the averages of one that took all steps at
    once; `<run>:best` has those of its own step, from the snapshots up to there."""
    words = [*WORDS, "ema=power", "job.save_every=6", "job.keep_checkpoints=-1"]
    go(run, *words, "job.max_steps=16", "output_dir=uninterrupted")
    go(run, *words, "output_dir=run")
    go(run, "resume=run", "job.max_steps=16")
    files = [
        tmp_path / name / "checkpoints" / "step-0000016.pt" for name in ("uninterrupted", "run")
    ]
    one, other = (averages.find(torch.load(f, weights_only=True), "ema:0.08", f) for f in files)
    assert all(torch.equal(one[name], other[name]) for name in one)

    older = tmp_path / "run" / "checkpoints" / "step-0000006.pt"
    shutil.copy(older, older.with_name("best.pt"))
    wanted = averages.find(torch.load(older, weights_only=True), "ema:0.08", older)
    out = go(run, "job=average", "checkpoint=run:best", "job.sigma_rel=[0.08]", "output_dir=av")
    assert "from 5 snapshots" in out
    found = checkpoint.load(tmp_path / "av" / "ema-0.08" / safetensors_file.NAME)
    assert found["step"] == 6
    assert all(torch.equal(found["ema"][name], wanted[name]) for name in wanted)
    go(run, *DRAW, "checkpoint=run:best", "job.weights=ema:0.08", "output_dir=drawn")
    go(run, *DRAW, "checkpoint=av/ema-0.08", "output_dir=again")
    assert torch.equal(pngs(tmp_path / "drawn"), pngs(tmp_path / "again"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ema=power", "job.ema_decay=0.9"], "job.ema_decay: is not used by ema=power, whose "),
        (["ema=power", "job.ema_ramp=2"], "job.ema_ramp: is not used by ema=power"),
        (["ema=several", "job.ema_decay=0.9"], "whose lengths are ema.decays; leave it out"),
        (["ema=several", "ema.decays=[0.9,0.9]"], "ema.decays=[0.9, 0.9]: must be a list of diff"),
        (["ema=power", "ema.sigma_rel=[0.1]"], "ema.sigma_rel=[0.1]: must be two or more diff"),
        (["ema=power", "ema.sigma_rel=[0.1,0.3]"], "and at most 0.28"),
        (["ema=power", "ema.snapshots=0"], "ema.snapshots=0: must be a whole number from 1"),
        (["job=evaluate", "samples=x", "ema=power"], "ema: this job trains nothing"),
        (["ema=powr"], "Did you mean 'power'?"),
    ],
)
def test_invalid_settings_are_refused(run, words, message):
    status, out, err = run(*words, "tracker=local")
    assert status == 2
    assert message in out + err
