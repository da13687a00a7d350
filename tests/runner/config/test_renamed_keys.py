"""Old names of keys work on the command line, in users' files and in stored configurations."""

import pytest
import yaml
from support.base import TINY

from ddpm.runner.config import renamed_keys
from ddpm.runner.runs import old_names

OLD = {
    "job.accumulate": 2,
    "job.decay_steps": 5,
    "job.max_skips": 7,
    "weighting.loss_type": "l1",
}


@pytest.fixture(autouse=True)
def no_earlier_warnings(monkeypatch):
    monkeypatch.setattr(renamed_keys, "_noted", set())


def value_at(config, key):
    for name in key.split("."):
        config = config[name]
    return config


def check_config(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for old, value in OLD.items():
        assert value_at(config, old_names.RENAMED[old]) == value
        assert old.split(".")[1] not in config[old.split(".")[0]]
    return config


def test_old_keys_work_on_the_command_line(run, tmp_path):
    words = [f"{old}={value}" for old, value in OLD.items()]
    status, out, err = run(*TINY, *words, "job.max_steps=1", "output_dir=run")
    assert status == 0, out + err
    config = check_config(tmp_path / "run")
    assert "job.accumulate_grad_batches=2" in config["overrides"]
    assert config["diffusion"]["objective"]["loss_type"] == "l1"


def test_old_keys_work_in_user_files(run, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "job: {accumulate: 2, decay_steps: 5, max_skips: 7, max_steps: 1}\n"
        "weighting: {loss_type: l1}\n"
    )
    words = [word for word in TINY if "max_steps" not in word]
    status, out, err = run("--config-dir", "own", *words, "experiment=mine", "output_dir=run")
    assert status == 0, out + err
    check_config(tmp_path / "run")


def test_a_typed_key_wins_over_an_old_one_of_a_file(run, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\njob: {accumulate: 2}\n"
    )
    words = (*TINY, "experiment=mine", "job.accumulate_grad_batches=4", "job.max_steps=1")
    status, out, err = run("--config-dir", "own", *words, "output_dir=run")
    assert status == 0, out + err
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["job"]["accumulate_grad_batches"] == 4


def test_each_old_name_is_warned_about_once(caplog):
    words = ["job.accumulate=2", "+job.accumulate=2", "job.batch_size=4", "resume_allow=[seed]"]
    assert renamed_keys.in_words(words) == [
        *("job.accumulate_grad_batches=2", "+job.accumulate_grad_batches=2"),
        *("job.batch_size=4", "allow_changes=[seed]"),
    ]
    assert [record.getMessage().split()[0] for record in caplog.records] == [
        "job.accumulate",
        "resume_allow",
    ]


def test_old_keys_work_in_stored_configs():
    old = {
        "hardware": {"_target_": "ddpm.hardware.fabric"},
        "job": {"label": 3, "mixes": 5},
        "weighting": {"loss_type": "huber"},
        "objective": {"_target_": "x"},
        "diffusion": {"weighting": {"loss_type": "huber"}, "objective": {}},
        "overrides": ["job.label=3", "seed=1"],
    }
    new = old_names.renamed(old)
    assert new["hardware"]["_target_"] == "ddpm.runner.distributed.fabric.fabric"
    assert new["job"] == {"labels": [3], "num_mixtures": 5}
    assert new["weighting"] == {}
    assert new["objective"] == {"_target_": "x", "loss_type": "huber"}
    assert new["diffusion"] == {"weighting": {}, "objective": {"loss_type": "huber"}}
    assert new["overrides"] == ["job.labels=3", "seed=1"]
    assert old["job"] == {"label": 3, "mixes": 5}, "the stored configuration is not changed"


def test_first_names_are_the_oldest_names_of_keys():
    target = "ddpm.runner.distributed.fabric.fabric"
    today = {"diffusion.objective.loss_type": "l1", "hardware._target_": target, "seed": 1}
    assert old_names.first_names(today) == {
        "diffusion.weighting.loss_type": "l1",
        "hardware._target_": "ddpm.hardware.fabric",
        "seed": 1,
    }
