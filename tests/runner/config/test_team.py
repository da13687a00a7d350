"""A team's file: settings of every job that do not change results."""

import pytest
import yaml
from support.base import TINY
from support.mistakes import assert_answered, contents
from support.wandb_reader import read_run, run_files
from support.wandb_runs import not_logged_in

from ddpm.errors import InputError
from ddpm.runner.config import team
from ddpm.runner.runs import code_version

__all__ = ["not_logged_in"]

LAB = "# @package _global_\ntracker: {wandb: {entity: lab, project: pets, mode: offline}}\n"
LAB += "data_dir: lab-data\n"
HERE = ["--config-dir", "mine"]


@pytest.fixture
def lab(tmp_path):
    file = tmp_path / "mine" / "team" / "lab.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(LAB)
    return file


def config(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.mark.slow
def test_team_applies_to_every_job_and_can_be_overridden(
    lab, run, tiny, data_dir, tmp_path, monkeypatch
):
    monkeypatch.delenv("DDPM_DATA")
    (tmp_path / "lab-data").symlink_to(data_dir)
    status, _, err = run(*HERE, "resume=run", "team=lab", "tracker=wandb", "job.max_steps=8")
    assert status == 0, err
    (part,) = [read_run(path) for path in run_files(tiny)]
    assert (part.run.entity, part.run.project) == ("lab", "pets")
    assert [row["step"] for row in part.rows if "train/loss" in row] == list(range(1, 9))
    assert config(tiny)["choices"]["team"] == "lab"
    assert config(tiny)["data_dir"] == str(tmp_path / "lab-data")
    words = ["job=sample", "checkpoint=run", "hardware=cpu", "job.num_samples=1", "sampler.steps=2"]
    for who in (["team=lab", "tracker=wandb"], ["tracker=local"]):
        status, _, err = run(*HERE, *words, *who, "output_dir=drawn")
        assert status == 0, err
    assert [read_run(path).run.entity for path in run_files(tmp_path / "drawn")] == ["lab"]


def test_machine_wide_team_is_used(lab, run, monkeypatch):
    monkeypatch.setenv("DDPM_TEAM", "lab")
    monkeypatch.delenv("DDPM_DATA")
    status, out, err = run(*HERE, "--cfg", "job")
    assert status == 0, err
    assert "entity: lab" in out
    status, out, err = run(*HERE, "--cfg", "job", "team=none")
    assert "entity: null" in out
    monkeypatch.setenv("DDPM_TEAM", "lap")
    status, _, err = run(*TINY)
    assert_answered(status, err, "team=lap", "example_lab")


def test_empty_team_variable_means_no_team(run, monkeypatch):
    monkeypatch.setenv("DDPM_TEAM", "")
    status, out, err = run("--cfg", "job")
    assert (status, err) == (0, "")
    assert "entity: null" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "this one holds a list"),
        ("defaults: 3", "this one holds something else"),
        ("3", "this one holds something else"),
        ("a", "a: a team's file may set"),
        ("", None),
    ],
)
def test_team_file_must_hold_allowed_keys(lab, text, message):
    lab.write_text(text)
    if message is None:
        assert team.keys([lab.parent.parent], "lab") == []
        return
    with pytest.raises(InputError) as caught:
        team.keys([lab.parent.parent], "lab")
    assert message in str(caught.value)


BINDING = {
    "optimizer.lr": "optimizer: {lr: 1e-4}",
    "job.batch_size": "job: {batch_size: 3}",
    "hydra.job.name": "hydra: {job: {name: x}}",
    "override /model": "defaults: [{override /model: convnet}]",
}


@pytest.mark.slow
def test_team_file_cannot_set_keys_that_change_results(lab, run, tiny, tmp_path):
    for key, text in BINDING.items():
        lab.write_text(f"# @package _global_\n{text}\n")
        before = contents(tmp_path)
        for job in (["output_dir=x"], ["resume=run"], ["job=sample", "checkpoint=run"]):
            status, _, err = run(*HERE, *job, "team=lab")
            assert_answered(status, err, "team/lab.yaml: ", key, "conf/experiment/")
        assert contents(tmp_path) == before


def test_team_file_may_choose_trackers(lab, run):
    lab.write_text(
        f"# @package _global_\ndefaults: [{{override /tracker: tensorboard}}]\n{LAB[21:]}"
    )
    status, out, err = run(*HERE, "--cfg", "job", "team=lab")
    assert status == 0, err
    assert "flush_secs: 30" in out


def test_code_version_is_commit_and_dirty_flag(tmp_path, monkeypatch):
    import subprocess

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    def state():
        code_version.state.cache_clear()
        return code_version.state()

    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    assert state() is None
    (tmp_path / "ddpm").mkdir()
    (tmp_path / "conf").mkdir()
    (tmp_path / "run.py").write_text("1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert state() is None, "no repository"
    git("init")
    assert state() is None, "no commit"
    git("add", ".")
    git("commit", "-m", "one")
    head = subprocess.run(
        ["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert state() == {"commit": head, "dirty": False}
    (tmp_path / "notes.txt").write_text("not a part of it")
    assert state() == {"commit": head, "dirty": False}
    (tmp_path / "conf" / "new.yaml").write_text("a: 1")
    assert state() == {"commit": head, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert state() is None
    code_version.state.cache_clear()
