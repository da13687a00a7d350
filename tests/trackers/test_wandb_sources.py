"""Runs whose W&B settings come from the command line, from files and from variables.

Offline, by the real client; what it wrote is read back.
"""

from pathlib import Path

import pytest
import yaml
from support.base import TINY
from support.mistakes import assert_answered, contents
from support.wandb_reader import read_run, run_files
from support.wandb_runs import forget, not_logged_in

from ddpm.runner.config.plan import Mode, Output, Plan
from ddpm.runner.report.status import common_overrides
from ddpm.runner.sweeps.compose import Job, name_jobs
from ddpm.trackers.wandb_client import limits

__all__ = ["not_logged_in"]

SHORT = ["model=convnet", "model.width=8", "hardware=cpu", "job.max_steps=2", "job.batch_size=4"]
SHORT += ["job.log_every=1", "job.num_samples=1", "sampler=ddim", "sampler.steps=1"]
SHORT += ["job.warmup_steps=0", "tracker.wandb.artifacts=none"]
SET = {
    "WANDB_PROJECT": "pets",
    "WANDB_ENTITY": "our-lab",
    "WANDB_NAME": "first",
    "WANDB_TAGS": "a,2026",
    "WANDB_NOTES": "a note",
    "WANDB_RUN_GROUP": "study",
    "WANDB_JOB_TYPE": "ablation",
}


@pytest.fixture
def variables(monkeypatch):
    for name, value in SET.items():
        monkeypatch.setenv(name, value)


def parts(folder):
    """The W&B runs of a folder, each start one."""
    forget()
    return [read_run(path).run for path in run_files(folder)]


def part(folder):
    (only,) = parts(folder)
    return only


def settings(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())["tracker"]["wandb"]


def recorded_settings(record):
    tags = list(record.tags)[5:]  # behind those of its parts
    names = (record.project, record.entity, record.display_name)
    return [*names, tags, record.notes, record.run_group, record.job_type]


@pytest.mark.slow
def test_settings_from_variables_are_stored_and_kept_on_resume(
    run, tmp_path, variables, monkeypatch
):
    status, _, err = run(*SHORT, "output_dir=run")
    assert (status, err) == (0, "")
    values = ["pets", "our-lab", "first", ["a", "2026"], "a note", "study", "ablation"]
    assert recorded_settings(part(tmp_path / "run")) == values
    names = ["project", "entity", "name", "tags", "notes", "group", "job_type"]
    assert [settings(tmp_path / "run")[name] for name in names] == values
    for name in SET:
        monkeypatch.setenv(name, "others")
    monkeypatch.setenv("WANDB_PROJECT", "not/possible")
    status, _, err = run("resume=run", "job.max_steps=3", "tracker.wandb.notes=new")
    assert (status, err) == (0, "")
    assert recorded_settings(parts(tmp_path / "run")[1]) == [*values[:4], "new", *values[5:]]


def test_command_line_takes_precedence_over_variables(run, tmp_path, variables):
    mine = ["project=007", "entity=me", "name=1.10", "tags=[2026,1e3,b]", "notes=true", "group=5"]
    words = [f"tracker.wandb.{word}" for word in (*mine, "job_type=j")]
    status, _, err = run(*SHORT, *words, "output_dir=run")
    assert (status, err) == (0, "")
    tags = ["2026", "1e3", "b"]
    assert recorded_settings(part(tmp_path / "run")) == [
        "007",
        "me",
        "1.10",
        tags,
        "true",
        "5",
        "j",
    ]


@pytest.mark.parametrize("how", ["variable", pytest.param("typed", marks=pytest.mark.slow)])
def test_team_file_takes_precedence_over_variables_but_not_over_an_experiment(
    how, run, tmp_path, variables, monkeypatch
):
    for name, text in {
        "team": "tracker: {wandb: {project: ddpm, entity: lab, notes: of the lab}}\n",
        "experiment": "tracker: {wandb: {entity: guests, tags: [2027]}}\n",
    }.items():
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "ours.yaml").write_text(f"# @package _global_\n{text}")
    if how == "variable":
        monkeypatch.setenv("DDPM_TEAM", "ours")
    words = ["--config-dir=mine", "experiment=ours", *(["team=ours"] if how == "typed" else [])]
    status, _, err = run(*SHORT, *words, "tracker.wandb.notes=typed", "output_dir=run")
    assert (status, err) == (0, "")
    assert recorded_settings(part(tmp_path / "run")) == [
        *("ddpm", "guests", "first", ["2027"]),
        *("typed", "study", "ablation"),
    ]


WRONG = [
    ("tracker.wandb.tags=[null]", {}, "tracker.wandb.tags="),
    ("tracker.wandb.tags=['']", {}, "tracker.wandb.tags="),
    ("tracker.wandb.project=a/b", {}, "tracker.wandb.project=a/b"),
    ("tracker.wandb.entity=a/b", {}, "tracker.wandb.entity=a/b"),
    ("seed=3", {"WANDB_PROJECT": "a/b"}, "WANDB_PROJECT=a/b"),
    ("seed=3", {"WANDB_TAGS": "x" * 65}, "WANDB_TAGS=xxx"),
    ("seed=3", {"WANDB_MODE": "sometimes"}, "WANDB_MODE=sometimes"),
    ("seed=3", {"WANDB_MODE": "online"}, "not logged in"),
    ("tracker.wandb.mode=online", {"WANDB_MODE": "offline"}, "not logged in"),
]


@pytest.mark.quick(3)
@pytest.mark.parametrize(("word", "variables", "message"), WRONG)
def test_invalid_settings_are_refused_before_anything_is_written(
    word, variables, message, run, tmp_path, monkeypatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, _, err = run(*SHORT, word, "output_dir=run")
    assert_answered(status, err, message)
    assert set(contents(tmp_path)) == {"home"}


@pytest.mark.parametrize(("word", "variables", "message"), [WRONG[0], WRONG[4]])
def test_sweep_with_invalid_settings_starts_no_job(
    word, variables, message, run, tmp_path, monkeypatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, _, err = run("-m", *SHORT, word, "sweep=s")
    assert_answered(status, err, message)
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.slow
def test_report_goes_to_the_project_of_the_variables_under_its_own_name(run, tmp_path, variables):
    assert run(*SHORT, "output_dir=run")[0] == 0
    status, _, err = run("job=report", "runs=[run]", "output_dir=out")
    assert (status, err) == (0, "")
    record = part(tmp_path / "out")
    assert (record.project, record.entity, record.run_group) == ("pets", "our-lab", "study")
    assert (record.display_name, record.job_type) == ("report run", "report")
    before = contents(tmp_path)
    words = ["job=report", "runs=[run]", "output_dir=other"]
    status, _, err = run(*words, "tracker.wandb.project=a/b")
    assert_answered(status, err, "tracker.wandb.project=a/b")
    assert contents(tmp_path) == before


def jobs(tmp_path, sweep="s"):
    """The W&B runs of a sweep's jobs, in order."""
    folders = sorted(path.parent for path in tmp_path.glob(f"outputs/sweep/{sweep}/*/config.yaml"))
    return [parts(folder)[-1] for folder in folders]


@pytest.mark.slow
def test_sweep_jobs_have_distinct_names_and_keep_their_project(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.setenv("WANDB_PROJECT", "pets")
    words = ["-m", "sweep=s", *SHORT, "seed=1,2"]
    status, _, err = run(*words)
    assert (status, err) == (0, "")
    assert [job.display_name for job in jobs(tmp_path)] == ["mine seed=1", "mine seed=2"]
    assert {(job.run_group, job.project) for job in jobs(tmp_path)} == {("s", "pets")}
    assert len({job.run_id for job in jobs(tmp_path)}) == 2
    # The same command with other variables, where one job has to be resumed.
    first = sorted(tmp_path.glob("outputs/sweep/s/0-*"))[0]
    (first / "status.json").write_text('{"state": "failed", "step": 1}')
    monkeypatch.delenv("WANDB_NAME")
    monkeypatch.setenv("WANDB_PROJECT", "others")
    status, _, err = run(*words)
    assert (status, err) == (0, "")
    assert [record.project for record in parts(first)] == ["pets", "pets"]
    assert [record.display_name for record in parts(first)] == ["mine seed=1", "mine seed=1"]
    assert (settings(first)["project"], settings(first)["name"]) == ("pets", "mine")


@pytest.mark.slow
def test_long_names_are_shortened_and_kept_whole_in_the_config(run, tmp_path):
    notes, group = "tracker.wandb.notes=" + "n" * 150, "g" * 140
    words = [f"tracker.wandb.group={group}", notes, "seed=1,2"]
    status, _, err = run("-m", "sweep=s", *SHORT, *words)
    assert (status, err) == (0, "")
    found = jobs(tmp_path)
    assert [job.display_name for job in found] == ["seed=1", "seed=2"]
    (short,) = {job.run_group for job in found}
    assert len(short) <= 128
    folder = sorted(tmp_path.glob("outputs/sweep/s/0-*"))[0]
    (file,) = run_files(folder)
    assert read_run(file).config["full_group"] == group
    assert {"seed=1", notes} <= set(read_run(file).config["overrides"])


def plan(words, name=None):
    """The parts of a job's plan that its name depends on."""
    config = {"tracker": {"wandb": {"name": name}}}
    who = {"name": " ".join(words), "group": "s", "tags": [], "title": " ".join(words)}
    rest = {"trains": True, "changes": [], "checkpoint": None}
    return Plan(
        config=config, hparams=config, output=Output(Path("x"), Mode.ASSIGNED), **who, **rest
    )


def named(*jobs):
    """The names in W&B of jobs, each given by its overrides and its name."""
    made = [Job(i, words, plan=plan(words, name)) for i, (words, name) in enumerate(jobs)]
    common = common_overrides([job.overrides for job in made])
    for job in made:
        job.title = " ".join(word for word in job.overrides if word not in common)
    name_jobs([*made, Job(99, ["refused"], error="no")])
    return [
        limits.labelled(name, job.plan.title) if name else limits.shortened(job.plan.name)
        for job, (_, name) in zip(made, jobs, strict=True)
    ]


LONG = [f"data_dir=/{'d' * 120}", "tracker.wandb.notes=x"]


def test_job_names_contain_the_overrides_that_differ():
    a, b = ["lr=1", "seed=1"], ["lr=1", "seed=2"]
    assert named((a, None), (b, None)) == ["lr=1 seed=1", "lr=1 seed=2"]
    assert named((a, "mine"), (b, "mine")) == ["mine seed=1", "mine seed=2"]
    assert named((a, "one"), (b, "two")) == ["one", "two"]
    assert named((a, "one"), (b, None)) == ["one", "lr=1 seed=2"]
    assert named((a, "mine")) == ["mine lr=1 seed=1"]
    assert named((a, "mine"), (a, "mine")) == ["mine 0", "mine 1"]
    assert named(([*LONG, *a], None), ([*LONG, *b], None)) == ["seed=1", "seed=2"]
    assert named((["tracker.wandb.name=x"], "x")) == ["x 0"]


def test_long_job_names_are_shortened_and_stay_distinct():
    words = [[f"one.two.knob{i}={'v' * 20}{seed}" for i in range(5)] for seed in (1, 2)]
    first, second = named(*((one, None) for one in words))
    assert first.startswith("knob0=vvv")
    assert first != second
    assert max(map(len, (first, second))) <= 128
    same = [[f"one.knob={'v' * 100}{seed}", f"two.knob={'v' * 100}"] for seed in (1, 2)]
    first, second = named(*(([*one, f"x={one[0]}"], None) for one in same))
    assert first != second
    made = named(*(([f"data.root=/{'p' * 200}/{i}/{'q' * 200}"], "n" * 200) for i in range(5)))
    assert len(set(made)) == 5
    assert max(map(len, made)) <= 128


@pytest.mark.slow
def test_continued_sampling_job_keeps_its_project(run, tmp_path, monkeypatch):
    assert run(*TINY, "job.max_steps=2", "output_dir=run")[0] == 0
    words = ["job=sample", "checkpoint=run", "job.num_samples=2", "sampler.steps=1"]
    words += ["hardware=cpu", "output_dir=drawn", "tracker.wandb.artifacts=none"]
    for project in ("pets", "others"):
        monkeypatch.setenv("WANDB_PROJECT", project)
        status, _, err = run(*words)
        assert (status, err) == (0, "")
        (tmp_path / "drawn" / "samples" / "000001.png").unlink()
    assert [record.project for record in parts(tmp_path / "drawn")] == ["pets", "pets"]
