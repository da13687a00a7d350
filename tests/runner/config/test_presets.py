"""What data=digits and other presets choose, and that a run says so."""

import pytest
from support.base import TINY

from ddpm.runner.config import presets


def preset_lines(out):
    lines = [line for line in out.splitlines() if line.startswith("preset ")]
    return dict(line.removeprefix("preset").strip().split(": ", 1) for line in lines)


def test_run_prints_values_set_by_presets(run):
    words = ["model=unet", "tracker=local", "sampler.steps=1", "job.max_steps=1"]
    words += ["job.batch_size=4", "job.num_samples=1", "objective=v", "optimizer.lr=1e-4"]
    status, out, err = run(*words, "output_dir=run")
    assert status == 0, err
    found = preset_lines(out)
    assert found["data=digits"] == "schedule=cosine weighting=min_snr"
    assert "model.patch_size=2" in found["model_data=unet_digits"].split()
    assert "job.batch_size" not in found["job_data=train_digits"]
    assert "job.ema_decay=0.999" in found["job_data=train_digits"].split()
    assert "optimizer.lr" not in found["job_model_data_optimizer=train_unet_digits_adam"]
    status, out, err = run("resume=run", "job.max_steps=2")
    assert status == 0, err
    assert preset_lines(out) == {}


@pytest.mark.parametrize("words", [[], ["objective=eps", "schedule=linear", "weighting=uniform"]])
def test_command_line_overrides_presets_of_a_dataset(run, words):
    shown = run("--cfg", "job", *words)[1]
    wanted = (
        ("eps.Eps", "linear.linear", "uniform.Uniform") if words else ("x_0.X0", "cosine.cosine")
    )
    for name in wanted:
        assert f".{name}" in shown


def test_other_datasets_have_no_presets():
    choices = {"data": "mnist", "schedule": "linear", "objective": "eps", "weighting": "uniform"}
    assert presets.lines({"choices": choices}) == []


def test_experiment_overrides_presets_of_its_dataset(run, tmp_path):
    folder = tmp_path / "own" / "experiment"
    folder.mkdir(parents=True)
    text = "defaults:\n  - override /data: digits\n  - override /objective: v\n"
    (folder / "mine.yaml").write_text(f"# @package _global_\n{text}")
    shown = run("--config-dir", "own", "experiment=mine", *TINY[1:], "--cfg", "job")[1]
    assert "ddpm.objectives.v.V" in shown
