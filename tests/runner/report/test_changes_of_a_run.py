"""A run resumed with other settings: its changes, and the command with the final values."""

import shlex

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from support.report_folders import config, run_folder

from ddpm.runner import report
from ddpm.runner.report import changes, commands
from ddpm.runner.report.run_record import read


def resumed(path, *, until=(), **now):
    """A run with earlier configurations, each given with the step until which it held."""
    folder = run_folder(path, [1.0, 0.5], **now)
    for step, parts in until:
        text = yaml.safe_dump(config(**parts))
        (folder / f"config.until-step-{step:07d}.yaml").write_text(text)
    return read(folder)


def test_command_has_the_final_values(tmp_path):
    words = ["model=unet", "job.max_steps=20", "+job.batch_size=8"]
    until = [
        (20, {"job": {"max_steps": 20}, "tracker": {"wandb": {"name": "a"}}, "version": 0}),
        (40, {"job": {"max_steps": 60, "batch_size": 4}}),
    ]
    now = {"job": {"max_steps": 80, "batch_size": 4}, "optimizer": {"lr": 1e-5}}
    run = resumed(tmp_path / "a", until=until, overrides=words, **now)
    assert shlex.split(commands.again(run))[2:] == [
        *("model=unet", "job.max_steps=80", "+job.batch_size=4", "optimizer.lr=1e-5")
    ]
    assert sorted(changes.as_text(run)) == [
        "job.batch_size changed at step 20: 8, then 4",
        "job.max_steps changed at step 20: 20, then 60",
        "job.max_steps changed at step 40: 60, then 80",
        "optimizer.lr changed at step 40: 0.002, then 1e-5",
    ]
    report.write([run.folder], tmp_path / "out", "one")
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text().replace("\\", "")
        assert "job.max_steps changed at step 40: 60, then 80." in text, name


def test_changed_group_choice_is_in_the_command(tmp_path):
    until = [(10, {"choices": {"hardware": "cpu", "tracker": "wandb"}})]
    run = resumed(tmp_path / "a", until=until, choices={"hardware": "ddp"}, overrides=["seed=0"])
    assert shlex.split(commands.again(run))[2:] == ["seed=0", "hardware=ddp"]


def test_overrides_that_contradict_the_config_are_corrected(tmp_path):
    words = ["job.max_steps=20", "optimizer.lr=2e-3", "job.name=x", "job.compile=false"]
    words += ["data.root=here", "job.labels=[1,2]", "job.clip=null"]
    job = {"max_steps": 40, "name": "y", "compile": True, "labels": [3], "clip": 1.0}
    run = resumed(tmp_path / "a", overrides=words, job=job, data={"root": "/there"})
    assert shlex.split(commands.again(run))[2:] == [
        *("job.max_steps=40", *words[1:3], "job.compile=true", *words[4:6], "job.clip=1")
    ]
    assert changes.as_text(run)[0] == "job.max_steps changed before the first step: 20, then 40"


def test_unchanged_run_keeps_its_overrides(tmp_path):
    words = ["job.max_steps=1e2", "job.batch_size=8", "data.conditional=True", "optimizer.x=${y}"]
    words += ["optimizer.x=null", "model.y='1'", "model.z=nan"]
    parts = {"data": {"conditional": True}, "optimizer": {"x": None}}
    parts["model"] = {"y": "1", "z": float("nan")}
    run = resumed(tmp_path / "a", overrides=words, **parts)
    assert shlex.split(commands.again(run))[2:] == words
    assert changes.as_text(run) == []


@pytest.mark.parametrize(
    "value",
    ["a", "a/b.c", "null", "it's", "a\\'b\\", "1e5", "", "[x", 1, 1e-7, True, None, [1, "a"]],
)
def test_hydra_parses_changed_values_back(tmp_path, value):
    run = resumed(tmp_path / "a", until=[(5, {"job": {"x": -7}})], job={"x": value})
    (word,) = shlex.split(commands.again(run))[2:]
    (override,) = OverridesParser.create().parse_overrides([word])
    found = override.value()
    if isinstance(value, str):
        assert isinstance(found, str | QuotedString)
        found = found.text if isinstance(found, QuotedString) else found
    assert (type(found), found) == (type(value), value)


def test_hostile_configs_add_nothing_to_the_command(tmp_path):
    hostile = {"job": {"_target_": "os.system", "a b; c": 1, "x": {1: 2}}, "hydra": {"x": 1}}
    run = resumed(tmp_path / "a", until=[(5, hostile)], hydra={"x": 2}, job={"a b; c": 2})
    (run.folder / "config.until-step-0000009.yaml").write_text("a: [")
    (run.folder / "config.until-step-0000007.yaml").write_text("- a")
    again = commands.again(read(run.folder))
    assert again == "python run.py"


@pytest.mark.parametrize(
    ("was", "now", "warned"),
    [
        ({"job": {"max_steps": 60}}, {}, False),
        ({"job": {"log_every": 1}, "tracker": {"wandb": {"name": "a"}}}, {}, False),
        ({"sampler": {"steps": 4}}, {"sampler": {"steps": 50}}, False),
        ({"job": {"max_steps": 60, "lr_decay": "cosine"}}, {"job": {"lr_decay": "cosine"}}, True),
        ({"optimizer": {"lr": 1e-5}}, {}, True),
        ({"code": {"commit": "a"}}, {"code": {"commit": "b"}}, True),
    ],
)
def test_only_changes_that_may_show_in_the_result_are_a_problem(was, now, warned, tmp_path):
    run = resumed(tmp_path / "a", until=[(5, was)], **now)
    assert any("config.until" in problem for problem in run.problems) is warned


def test_changes_of_the_result_are_counted_and_damaged_configurations_with_them(tmp_path):
    until = [(5, {"optimizer": {"lr": 1e-5}}), (6, {"job": {"max_steps": 60}}), (9, {"seed": 1})]
    run = resumed(tmp_path / "a", until=until)
    assert "3 times" in run.problems[0]
    (run.folder / "config.until-step-0000007.yaml").write_text("a: [")
    assert "4 times" in read(run.folder).problems[0]
