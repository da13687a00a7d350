"""job=status and job=report as a user calls them."""

import csv

import pytest
from conftest import TINY
from wandb_reader import read_run, run_files

from ddpm import run_dir

SWEEP = ["-m", *TINY, "job.max_steps=3", "sweep=study", "seed=1,2"]


@pytest.fixture
def study(run, tmp_path):
    status, out, err = run(*SWEEP)
    assert status == 0, out + err
    return tmp_path / "outputs" / "sweep" / "study"


def test_a_sweep_is_looked_at_by_its_name(run, study, tmp_path):
    status, out, err = run("job=status", "sweep=study")
    assert status == 0, err
    assert "2 done" in out
    assert "seed=1" in out
    status, out, err = run("job=report", "sweep=study")
    assert status == 0, err
    for name in ("report.html", "report.md", "report.csv"):
        assert (study / name).stat().st_size > 100
        assert f"report   {(study / name).relative_to(tmp_path)}" in out
    with open(study / "report.csv", newline="") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["1", "2"]
    # A report is no job: the next look counts as many.
    assert "2 done" in run("job=status", "sweep=outputs/sweep/study")[1]


def test_any_runs_are_looked_at_by_their_folders(run, study, tmp_path):
    one = f"runs=[{study}/0-convnet-digits]"
    assert "1 done" in run("job=status", one)[1]
    status, _, err = run("job=report", one, "output_dir=here")
    assert status == 0, err
    assert "0-convnet-digits" in (tmp_path / "here" / "report.md").read_text()
    assert run("job=report", one)[0] == 0
    assert len(list((tmp_path / "outputs" / "report").glob("*/report.html"))) == 1


def test_a_refused_job_is_told_with_its_reason(run, tmp_path):
    run(*SWEEP, "job.batch_size=8,-1")
    out = run("job=status", "sweep=study")[1]
    assert "2 done, 2 failed" in out
    assert "job.batch_size=-1" in out
    assert run("job=report", "sweep=study")[0] == 0


def test_wandb_is_shown_the_report_of_what_it_tracked(run, tmp_path, monkeypatch):
    import sys

    monkeypatch.setenv("WANDB_MODE", "offline")
    words = [word for word in SWEEP if word != "tracker=local"]
    try:
        assert run(*words)[0] == 0
        status, out, err = run("job=report", "sweep=study")
        assert status == 0, err
    finally:
        sys.modules["wandb"].teardown()
    (file,) = run_files(tmp_path / "outputs" / "sweep" / "study")
    shown = read_run(file)
    assert (shown.run.run_group, shown.run.job_type) == ("study", "report")
    types = {k: v for row in shown.rows for k, v in row.items() if k.endswith("/_type")}
    assert types == {"report/_type": "html-file", "runs/_type": "table-file"}
    assert "wandb sync" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["job=status"], "job=status: say which runs, by sweep=<name> or by"),
        (["job=report", "sweep=a", "runs=[b]"], "job=report: say which runs"),
        (["job=report", "sweep=studdy"], "Did you mean 'study'?"),
        (["job=report", "runs=[nowhere]"], "runs: nowhere is not the folder of a run"),
        (["job=report", "runs=[3]"], "runs: 3 is not the folder of a run"),
        (["job=report", "sweep=study", "model=unet"], "model: job=report looks at runs"),
        (["job=report", "sweep=study", "job.max_steps=3"], "job.max_steps"),
        (["-m", "job=status", "sweep=study"], "leave out -m"),
        (["job=report", "sweep=..\\x"], "sweep=..\\x: must be a name"),
        (["job=status", "sweep=study", "seed=1"], "seed: job=status looks at runs"),
    ],
)
def test_mistakes(words, message, run, tmp_path):
    job = tmp_path / "outputs" / "sweep" / "study" / "0-unet-digits"
    job.mkdir(parents=True)
    run_dir.write_status(job, "failed", error="x")
    status, _, err = run(*words)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) <= 5
