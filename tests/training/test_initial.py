"""init_from: the weights that a new run starts with, its output, and refused sources."""

import json
import shutil

import pytest
import torch
import yaml
from support.base import TINY
from support.diffusers_models import LSUN, randomised, saved, small, unet_of
from support.runs import assert_equal_state, go, losses_of, state_of
from support.sweep_folders import jobs_of

from ddpm.denoising import training_losses
from ddpm.errors import InputError
from ddpm.pretrained import load_network
from ddpm.randomness import Order, StepNoise
from ddpm.runner.config import initial
from ddpm.runner.config.build import build
from ddpm.runner.sweeps.launchers import job_queue
from ddpm.schedules.learned import LearnedSchedule

AGAIN = [*TINY, "job.sample_every=null", "job.warmup_steps=0", "job.validate_every=null"]
FIRST = [word for word in AGAIN if not word.startswith("model")]  # the source brings its network


def weights(folder, step, kind="model"):
    return state_of(folder, step)[kind]


def test_first_loss_equals_that_of_the_source(run, tiny, tmp_path):
    words = [*FIRST, "seed=7", "job.save_every=1", "job.max_steps=1", f"init_from={tiny}"]
    out = go(run, *words, "output_dir=new")
    network, diffusion, _, _ = load_network(tiny)
    config = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())
    data = build(config["data"], "data")
    data.prepare()
    order = Order(len(data), 7, 8, slice(0, 8), 0, 1)
    images, _ = data.__getitems__(order.images(0))
    noise = StepNoise(7, 8, (1, 16, 16), diffusion.T, torch.device("cpu"), diffusion.timesteps)
    t, eps, *_ = noise(0, slice(0, 8))
    with torch.no_grad():
        loss = training_losses(diffusion, network, diffusion.codec.encode(images), t, eps).mean()
    assert losses_of(tmp_path / "new") == [(1, pytest.approx(loss.item(), abs=1e-5))]
    assert f"weights of {tiny}, step 6\n" in out
    assert config["init_from"] == str(tiny)
    assert config["init_source"]["step"] == 6
    stored = yaml.safe_load((tiny / "config.yaml").read_text())
    assert config["init_source"]["run_id"] == stored["run_id"] != config["run_id"]
    assert config["model"] == stored["model"]


def test_network_and_average_start_from_the_chosen_weights(run, tiny, tmp_path):
    """A learning rate of next to nothing leaves the weights as they came."""
    still = ["job.max_steps=1", "optimizer.lr=1e-30", "job.ema_ramp=1"]
    source = {kind: weights(tiny, 6, kind) for kind in ("model", "ema")}
    for asked, (model, ema) in {
        "ema": ("ema", "ema"),
        "model": ("model", "model"),
        "both": ("model", "ema"),
    }.items():
        words = [*FIRST, *still, f"init_from={tiny}", f"init_weights={asked}"]
        go(run, *words, "job.ema_decay=0.9999999", f"output_dir={asked}")
        for kind, expected in (("model", model), ("ema", ema)):
            for name, weight in weights(tmp_path / asked, 1, kind).items():
                torch.testing.assert_close(weight, source[expected][name], rtol=1e-5, atol=1e-6)
    assert any((source["ema"][n] - source["model"][n]).abs().max() > 1e-5 for n in source["ema"])


@pytest.mark.slow
def test_a_resumed_run_does_not_read_the_source(run, tiny, tmp_path):
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    words = [*FIRST, f"init_from={tiny}"]
    go(run, *words, "job.max_steps=4", f"output_dir={whole}")
    go(run, *words, "job.max_steps=2", f"output_dir={parts}", "resume=auto")
    shutil.move(tiny, tmp_path / "moved")
    go(run, *words, "job.max_steps=4", f"output_dir={parts}", "resume=auto")
    assert_equal_state(state_of(whole, 4), state_of(parts, 4))
    status, _, err = run(*AGAIN, f"resume={parts}", "init_from=elsewhere")
    assert status == 2
    assert "init_from=elsewhere: resume=" in err


def test_parts_that_do_not_fit_are_refused_unless_allowed(run, tiny, tmp_path):
    words = [*FIRST, f"init_from={tiny}", "data.conditional=true", "job.max_steps=1"]
    status, _, err = run(*words, "output_dir=new")
    assert status == 2
    assert "class_embedding.weight is missing" in err
    assert "'init_allow=[class_embedding]'" in err
    assert not (tmp_path / "new").exists()
    out = go(run, *words, "init_allow=[class_embedding]", "output_dir=new")
    assert "; random: class_embedding\n" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["objective=v"], "objective=v: the weights of init_from="),
        (["schedule.T=50"], "schedule.T=50: the weights of init_from="),
        (["model.width=12"], "its weights are of another network"),
        (["model=dit"], "fit: set the model of that run."),
        (["init_weights=last"], "init_weights=last: must be one of"),
        (["job=train_classifier"], "of job=train"),
    ],
)
def test_contradicting_settings_are_refused(words, expected, run, tiny, tmp_path):
    own = [w for w in FIRST if w.partition("=")[0] in ("hardware", "tracker")]
    status, _, err = run(*own, f"init_from={tiny}", *words, "output_dir=new")
    assert status == 2
    assert expected in err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_sweep_starts_from_given_weights_and_skips_finished_jobs(run, tiny, tmp_path, monkeypatch):
    words = ["-m", *FIRST, "job.max_steps=1", "sweep=study", f"init_from={tiny.name}"]
    go(run, *words, "seed=1,2")
    made = [yaml.safe_load((job / "config.yaml").read_text()) for job in jobs_of(tmp_path).values()]
    assert [config["seed"] for config in made] == [1, 2]
    assert {config["init_from"] for config in made} == {str(tiny)}
    assert {config["init_source"]["step"] for config in made} == {6}
    assert "2 jobs in outputs/sweep/study: 2 done" in go(run, *words, "seed=1,2")
    shutil.copytree(tiny, tmp_path / "other")
    monkeypatch.setattr(job_queue, "run_job", lambda job: None)  # only its folder matters
    words[-1] = "init_from=run,other"
    assert "2 jobs in outputs/sweep/study: 1 done, 1 waiting" in run(*words, "seed=1")[1]
    assert len(jobs_of(tmp_path)) == 3


@pytest.mark.slow
def test_learned_schedule_is_loaded_or_refused(run, tmp_path):
    """Also if the timesteps are drawn by another rule than in the source."""
    words = [w for w in AGAIN if not w.startswith("schedule")]
    go(run, *words, "schedule=learned", "job.max_steps=2", "optimizer.lr=0.1", "output_dir=run")
    first = [w for w in FIRST if not w.startswith("schedule")]
    first += ["init_from=run", "job.max_steps=1", "optimizer.lr=1e-30"]
    out = go(run, *first, "timesteps=importance", "output_dir=new")
    assert "/run, step 2, and its learned schedule\n" in out
    theirs, ours = (weights(tmp_path / n, k, "diffusion") for n, k in (("run", 2), ("new", 1)))
    assert (theirs["schedule.end_logit"] - LearnedSchedule().end_logit).abs() > 0.05
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-6)
    for key, other in {"schedule": "linear", "schedule.hidden": "8"}.items():
        status, _, err = run(*first, f"{key}={other}", "output_dir=none")
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith(f"{key}={other}: the weights of init_from=")
    out = go(run, *first, "schedule.hidden=8", "init_allow=[schedule]", "output_dir=own")
    assert "learned schedule" not in out


def test_invalid_sources_are_refused(run, tmp_path):
    for words, expected in {
        ("init_from=nowhere",): "init_from=nowhere: there is no such file or folder",
        ("init_allow=[conv_in]",): "init_allow: is for init_from=",
    }.items():
        status, _, err = run(*AGAIN, *words)
        assert (status, err.count("\n")) == (2, 1)
        assert expected in err


def test_training_can_start_from_a_diffusers_pipeline(run, tmp_path):
    pytest.importorskip("diffusers")
    config = small(LSUN) | {"sample_size": 16, "in_channels": 1, "out_channels": 1}
    config |= {"block_out_channels": [8, 16], "down_block_types": ["DownBlock2D"] * 2}
    config |= {"up_block_types": ["UpBlock2D"] * 2}
    folder = saved(randomised(unet_of(config)), tmp_path / "pipe")
    words = [word for word in FIRST if not word.startswith("schedule")]
    go(run, *words, f"init_from={folder}", "job.max_steps=1", "output_dir=new")
    made = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())
    assert made["model"]["widths"] == [8, 16]
    assert made["choices"]["objective"] == "eps"
    assert made["diffusion"]["betas"]["rescale"] is False
    about = json.loads((tmp_path / "new" / "about.json").read_text())
    assert about["parameters"] == sum(w.numel() for w in weights(tmp_path / "new", 1).values())


def test_weights_of_another_sigma_data_are_refused():
    """Which pipelines of diffusers do not have: they are of eps, v or x_0."""
    edm = {"_target_": "ddpm.objectives.edm.EDM", "sigma_data": 0.5}
    theirs = {"objective": edm, "choices": {"objective": "edm"}}
    ours = theirs | {"objective": edm | {"sigma_data": 1.0}}
    with pytest.raises(InputError, match=r"^objective.sigma_data=1.0: .* were trained with 0.5"):
        initial._check_process(ours, theirs, "init_from=x")
    initial._check_process(ours | {"init_allow": ["objective"]}, theirs, "init_from=x")
    theirs = {"objective": {"_target_": "ddpm.objectives.v.V"}, "choices": {"objective": "v"}}
    with pytest.raises(InputError, match=r"^objective=edm: .* were trained with v;"):
        initial._check_process(ours, theirs, "init_from=x")
