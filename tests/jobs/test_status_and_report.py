"""job=status and job=report as a user calls them."""

import csv
import json
import shlex
import shutil
from types import SimpleNamespace

import pytest
from support.base import TINY
from support.report_folders import run_folder
from support.wandb_reader import read_run, run_files

from ddpm.jobs import report
from ddpm.runner.execution import execute
from ddpm.runner.runs import requests, run_dir

SWEEP = ["-m", *TINY, "job.max_steps=3", "sweep=study", "seed=1,2"]


@pytest.fixture
def study(run, finished_runs, tmp_path, tmp_path_factory):
    """The folder of a finished sweep of two jobs: a copy of one that is run once."""
    study = tmp_path / "outputs" / "sweep" / "study"
    if SWEEP[-1] not in finished_runs:
        status, out, err = run(*SWEEP)
        assert status == 0, out + err
        finished_runs[SWEEP[-1]] = shutil.move(study, tmp_path_factory.mktemp("finished"))
    shutil.copytree(finished_runs[SWEEP[-1]], study)
    return study


@pytest.mark.slow
def test_status_and_report_find_a_sweep_by_name(run, study, tmp_path):
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


def test_status_and_report_take_run_folders(run, study, tmp_path):
    one = f"runs=[{study}/0-convnet-digits]"
    assert "1 done" in run("job=status", one)[1]
    status, _, err = run("job=report", one, "output_dir=here")
    assert status == 0, err
    assert "0-convnet-digits" in (tmp_path / "here" / "report.md").read_text()
    assert run("job=report", one)[0] == 0
    assert len(list((tmp_path / "outputs" / "report").glob("*/report.html"))) == 1


@pytest.mark.slow
def test_refused_job_is_shown_with_its_reason(run, tmp_path):
    run(*SWEEP, "job.batch_size=8,-1")
    out = run("job=status", "sweep=study")[1]
    assert "2 done, 2 failed" in out
    assert "job.batch_size=-1" in out
    assert run("job=report", "sweep=study")[0] == 0


@pytest.mark.slow
def test_report_of_a_wandb_sweep_is_shown_in_wandb(run, tmp_path, monkeypatch):
    import sys

    monkeypatch.setenv("WANDB_MODE", "offline")
    words = [word for word in SWEEP if word != "tracker=local"]
    try:
        assert run(*words)[0] == 0
        for _ in range(2):
            status, out, err = run("job=report", "sweep=study")
            assert status == 0, err
    finally:
        sys.modules["wandb"].teardown()
    folder = tmp_path / "outputs" / "sweep" / "study"
    shown, later = (read_run(file) for file in run_files(folder))
    assert shown.run.run_id == later.run.run_id
    done = json.loads((folder / "wandb" / "artifacts.json").read_text())
    assert [(entry["kind"], entry["step"]) for entry in done] == [("report", 0), ("report", 1)]
    assert (shown.run.run_group, shown.run.job_type) == ("study", "report")
    types = {k: v for row in shown.rows for k, v in row.items() if k.endswith("/_type")}
    assert types == {"report/_type": "html-file", "runs/_type": "table-file"}
    assert "wandb sync" in out


@pytest.fixture
def shown(monkeypatch):
    """What would be shown to trackers: (their settings, run), for each report."""
    calls = []

    def show(trackers, files, output, title):
        calls.append((trackers, report._run_id(output, title)))

    monkeypatch.setattr(report, "_log", show)
    return calls


FOREIGN = {"wandb": {"_target_": "x", "entity": "stranger", "project": "theirs"}}


@pytest.mark.slow
def test_foreign_run_does_not_choose_the_wandb_project(run, shown, tmp_path):
    run_folder(tmp_path / "a", [1.0], tracker=FOREIGN)
    run_folder(tmp_path / "b", [1.0])
    for words in (["runs=[a]"], ["runs=[a]", "tracker.wandb.entity=lab"], ["runs=[b]"]):
        status, _, err = run("job=report", "output_dir=out", *words)
        assert status == 0, err
    run("job=report", "output_dir=out", "runs=[a]", "tracker=local")
    run("job=report", "output_dir=out", "runs=[b]", "tracker=wandb")
    places = [trackers["wandb"]["entity"] for trackers, _ in shown]
    assert places == [None, "lab", None]
    assert "theirs" not in str(shown)


def test_repeated_reports_share_one_run_id(run, shown, tmp_path):
    for name in "ab":
        run_folder(tmp_path / "outputs" / "sweep" / name / "0-x", [1.0], tracker=FOREIGN)
    for name in "aab":
        assert run("job=report", f"sweep={name}")[0] == 0
    (one, again, other) = [run_id for _, run_id in shown]
    assert one == again != other
    assert len(one) == 8


def test_sweeps_are_searched_in_hydra_sweep_dir(run, tmp_path):
    run_folder(tmp_path / "shared" / "study" / "0-x", [1.0])
    place = "hydra.sweep.dir=shared/${sweep}"
    status, out, err = run("job=status", "sweep=study", place)
    assert (status, "1 done" in out) == (0, True), err
    status, _, err = run("job=status", "sweep=studdy", place)
    assert status == 2
    assert "sweep=studdy: no jobs in shared/studdy. Did you mean 'study'?" in err
    assert run("job=status", "sweep=shared/study", place)[0] == 0


def test_report_in_a_run_folder_keeps_its_metrics(run, tmp_path):
    folder = run_folder(tmp_path / "a", [1.0, 0.5])
    before = (folder / "metrics.jsonl").read_bytes()
    words = ["job=report", "runs=[a]", "output_dir=a", "tracker=tensorboard"]
    status, _, err = run(*words)
    assert status == 0, err
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert (folder / "report.html").exists()


def test_printed_commands_are_quoted(tmp_path, capsys):
    folder = tmp_path / "a b"
    for job, state in (("train", "done"), ("train", "preempted"), ("train_classifier", "done")):
        execute._print_training_outcome(
            {"dir": folder, "state": state, "step": 1, "signal": None}, job
        )
    lines = [line for line in capsys.readouterr().out.splitlines() if "run.py" in line]
    assert len(lines) == 3
    assert all(shlex.split(line)[-1].endswith(f'="{folder}"') for line in lines)


@pytest.mark.parametrize(
    ("signal", "file", "words"),
    [
        (15, False, "by a signal, saved"),
        (None, True, "/stop, saved"),
        (None, False, "by the end of the parent process, saved"),
    ],
)
def test_cause_of_a_stop_is_printed(signal, file, words, tmp_path):
    from ddpm.runner.execution.run import Run

    if file:
        requests.ask_to_stop(tmp_path)
    messages = []
    one = SimpleNamespace(dir=tmp_path, say=messages.append)
    Run.preempted(one, signal, "saved")
    assert words in messages[0]
    assert (one.end, one.signal) == ("preempted", signal)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["job=status"], "job=status: name the runs"),
        (["job=report", "sweep=a", "runs=[b]"], "job=report: name the runs"),
        (["job=report", "sweep=studdy"], "Did you mean 'study'?"),
        (["job=report", "runs=[nowhere]"], "runs: nowhere is not the folder of a run"),
        (["job=report", "runs=[3]"], "runs: 3 is not the folder of a run"),
        (["job=report", "sweep=study", "model=unet"], "model: job=report only reads"),
        (["job=report", "sweep=study", "job.max_steps=3"], "job.max_steps"),
        *(
            (["-m", f"job={job}", "sweep=study"], f"job={job}: reads runs and cannot be a sweep")
            for job in ("status", "report", "compare", "watch")
        ),
        (["job=report", "sweep=..\\x"], "sweep=..\\x: must be a name"),
        (["job=status", "sweep=study", "seed=1"], "seed: job=status only reads"),
    ],
)
def test_invalid_arguments_are_refused(words, message, run, tmp_path):
    job = tmp_path / "outputs" / "sweep" / "study" / "0-unet-digits"
    job.mkdir(parents=True)
    run_dir.write_status(job, "failed", error="x")
    status, _, err = run(*words)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) <= 5
