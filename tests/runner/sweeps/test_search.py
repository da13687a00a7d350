"""hydra/sweeper=optuna: search spaces, results, pruning, and studies that continue."""

import json
import os
import re
import signal

import pytest
from support.base import TINY
from support.crash import go, output_of, start, until, wait
from support.runs import metrics_of, status_of

from ddpm.errors import InputError
from ddpm.runner.runs import requests, run_dir
from ddpm.runner.sweeps import folder

optuna = pytest.importorskip("optuna")

from optuna.distributions import (  # noqa: E402
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState  # noqa: E402

from ddpm.runner.sweeps.compose import Job  # noqa: E402
from ddpm.runner.sweeps.search import optuna_search, space, trials  # noqa: E402
from ddpm.runner.sweeps.search import study as shared_study  # noqa: E402

QUICK = [word for word in TINY if "lr=" not in word]
SEARCH = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.sampler=random", "hydra.sweeper.seed=1"]
SEARCH += ["sweep=study", *QUICK, "optimizer.lr=tag(log, interval(1e-5, 1e-2))"]


def study_of(home, name="study"):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = home / "outputs" / "sweep" / name / "study.journal"
    backend = optuna.storages.journal.JournalFileBackend(str(file))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))


def jobs_of(home, name="study"):
    return folder.job_folders(home / "outputs" / "sweep" / name)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optimizer.lr=interval(0.1,0.5)", FloatDistribution(0.1, 0.5)),
        ("optimizer.lr=tag(log,interval(1e-5,0.01))", FloatDistribution(1e-5, 0.01, log=True)),
        ("job.batch_size=tag(int,interval(2,9))", IntDistribution(2, 9)),
        ("optimizer.lr=interval(1,2)", FloatDistribution(1.0, 2.0)),
        ("job.batch_size=range(8,65,8)", IntDistribution(8, 64, step=8)),
        ("job.batch_size=range(8,64,8)", IntDistribution(8, 56, step=8)),
        ("model.dropout=range(0,0.5,0.25)", FloatDistribution(0, 0.25, step=0.25)),
        ("model=unet,resunet", CategoricalDistribution(["unet", "resunet"])),
        ("model=choice(unet,resunet)", CategoricalDistribution(["unet", "resunet"])),
        ("job.batch_size=range(10,1,-2)", IntDistribution(2, 10, step=2)),
        ("model.dropout=range(0.1,0.4,0.1)", FloatDistribution(0.1, 0.3, step=0.1)),
        ("model.dropout=range(0.5,0,-0.25)", FloatDistribution(0.25, 0.5, step=0.25)),
        ("seed=1,2", CategoricalDistribution(["1", "2"])),
    ],
)
def test_an_override_becomes_a_distribution(word, expected):
    fixed, distributions = space.split(["data=digits", word])
    assert fixed == ["data=digits"]
    assert distributions == {word.split("=")[0]: expected}


@pytest.mark.parametrize("words", [["data=digits"], []])
def test_a_search_without_a_range_is_refused(words):
    with pytest.raises(InputError, match="hydra/sweeper=optuna: nothing"):
        space.split(words)


@pytest.mark.parametrize(
    "word",
    ["seed=interval(2.0,1.0)", "seed=range(1,10,0)", "seed=range(9,1)", "seed=range(1,9,-1)"],
)
def test_an_empty_range_is_refused(word):
    with pytest.raises(InputError, match=f"{re.escape(word)}: cannot be searched"):
        space.split([word])


def test_untried_combinations_of_choices_are_found():
    _, distributions = space.split(["model=unet,resunet", "seed=1,2,1"])
    assert space.num_combinations(distributions) == 4
    tried = {"model=unet seed=1", "model=unet seed=2", "model=resunet seed=1"}
    assert space.untried(distributions, tried) == {"model": "resunet", "seed": "2"}
    assert space.untried(distributions, tried | {"model=resunet seed=2"}) is None
    assert (
        space.num_combinations(space.split(["seed=1,2", "optimizer.lr=interval(1,2)"])[1]) is None
    )


# a study and the commands that continue it


def checked(words=("data=digits",), metric="train/loss", direction="minimize", study=None):
    """The study after a command with these options."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = study or optuna.create_study()
    fixed, distributions = space.split([*words, "model=unet,resunet"])
    shared_study.check_setup(study, "here", metric, direction, fixed, distributions)
    return study


def test_study_refuses_a_changed_setup():
    study = checked(["data=digits", "job.max_steps=5"])
    same = ["hydra/launcher=slots", "job.max_steps=7", "tracker.project=x", "team=a", "sweep=b"]
    checked([*same, "job.num_workers=1", "job.max_steps=5", "data=digits"], study=study)
    with pytest.raises(InputError, match=r"job.max_steps=9: here has a study with job.max_steps=5"):
        checked(["data=digits", "job.max_steps=9"], study=study)
    with pytest.raises(InputError, match=r"nothing: here has a study with job.max_steps=5 instead"):
        checked(study=study)
    with pytest.raises(InputError, match=r"direction=maximize: here has a study to minimize"):
        checked(["data=digits", "job.max_steps=5"], direction="maximize", study=study)
    with pytest.raises(InputError, match=r"that searches model\."):
        shared_study.check_setup(study, "here", "train/loss", "minimize", [], ["model", "seed"])


def test_metric_may_be_changed_until_a_value_is_logged():
    study = checked(metric="los")
    checked(study=study)
    study.tell(study.ask(), 1.0)
    with pytest.raises(InputError, match="metric=los: here has a study of train/loss"):
        checked(metric="los", study=study)


def test_changed_choices_are_refused_before_a_trial_starts(run, tmp_path):
    words = [*SEARCH[:-1], "hydra.sweeper.n_trials=1"]
    create_study(
        tmp_path, {"schedule": "linear"}, schedule=CategoricalDistribution(["linear", "cosine"])
    )
    status, _, err = run(*words, "schedule=linear,cosine,sigmoid")
    assert status == 2
    assert re.search(r"^schedule: .* linear,cosine,sigmoid, .* linear,cosine\. ", err)
    assert len(study_of(tmp_path).trials) == 1


def create_study(home, params, **distributions):
    """The study of an earlier command, with one finished trial."""
    folder = home / "outputs" / "sweep" / "study"
    folder.mkdir(parents=True)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    study = optuna.create_study(study_name="study", storage=optuna.storages.JournalStorage(backend))
    study.add_trial(
        optuna.trial.create_trial(params=params, distributions=distributions, value=1.0)
    )
    return study


def test_partly_drawn_and_repeated_trials_are_not_run(run, tmp_path):
    """All combinations were tried; a trial whose process died while it was drawn has no job."""
    both = CategoricalDistribution(["linear", "cosine"])
    study = create_study(tmp_path, {"schedule": "linear"}, schedule=both)
    study.tell(study.ask({"schedule": CategoricalDistribution(["linear", "cosine"])}), 2.0)
    study.enqueue_trial({"schedule": "linear"})
    study.enqueue_trial({"schedule": "cosine"})
    partly_drawn = study.ask()
    words = [*SEARCH[:-1], "schedule=linear,cosine", "hydra.sweeper.n_trials=9"]
    (tmp_path / "outputs" / "sweep" / "study" / "study.journal").open("a").write('{"torn": ')
    status, out, err = run(*words)
    assert status == 0, out + err
    trials = study_of(tmp_path).trials
    assert trials[partly_drawn.number].state == TrialState.FAIL
    assert "combinations were tried" in out
    assert ", 0 pruned, 0 failed in all" in out


def test_a_damaged_journal_is_reported_by_name(run, tmp_path):
    create_study(tmp_path, {})
    (tmp_path / "outputs" / "sweep" / "study" / "study.journal").write_bytes(b'{"x\n{}\n')
    status, _, err = run(*SEARCH)
    assert status == 2
    assert "outputs/sweep/study/study.journal: cannot be read as a study" in err


def test_the_next_command_retries_failed_trials():
    study = checked()
    _, distributions = space.split(["model=unet,resunet"])
    for state in (TrialState.FAIL, TrialState.COMPLETE):
        study.tell(study.ask(distributions), 1.0 if state == TrialState.COMPLETE else None, state)
    assert len(shared_study.counted_trials(study)) == 2
    shared_study.retry_failed(study, distributions)
    shared_study.retry_failed(study, distributions)
    assert len(study.trials) == 3, "once"
    assert len(shared_study.counted_trials(study)) == 1
    trial = study.ask(distributions)
    assert trial.params == study.trials[0].params
    assert trial.user_attrs == {"again": 0}
    assert len(shared_study.counted_trials(study)) == 2


def test_a_search_reports_the_loss_and_continues(run, tmp_path):
    status, out, err = run(*SEARCH, "hydra.sweeper.n_trials=2", "model=convnet,unet")
    assert status == 0, out + err
    assert "\n2 done\n" in out
    status, out, err = run(*SEARCH, "hydra.sweeper.n_trials=3", "model=convnet,unet")
    assert status == 0, out + err
    assert "2 of 3 trials" in out
    assert "\n1 done\n" in out
    trials = study_of(tmp_path).trials
    jobs = jobs_of(tmp_path)
    assert len(trials) == len(jobs) == 3
    for trial, job in zip(trials, jobs, strict=True):
        losses = {row["step"]: row["train/loss"] for row in metrics_of(job)}
        config = run_dir.read_config(job)
        assert trial.state == TrialState.COMPLETE
        assert trial.value == pytest.approx(losses[6])
        assert trial.intermediate_values == pytest.approx(losses)
        assert config["optimizer"]["lr"] == pytest.approx(trial.params["optimizer.lr"], rel=1e-5)
        assert config["choices"]["model"] == trial.params["model"]
    best = min(trials, key=lambda trial: trial.value)
    assert f"best     trial {best.number}, train/loss" in out
    status, out, _ = run(*SEARCH, "hydra.sweeper.n_trials=3", "model=convnet,unet")
    assert status == 0
    assert "3 of 3 trials" in out


class Reported:
    """A stand-in for a trial, whose storage fails at first."""

    def __init__(self, failures):
        self.failures, self.values = failures, {}

    def report(self, value, step):
        if self.failures:
            self.failures -= 1
            raise OSError("the journal is locked")
        assert step not in self.values
        self.values[step] = value


def test_each_line_of_a_running_trial_is_read_once_and_reported(tmp_path, monkeypatch):
    read = []
    parse = trials.parse
    monkeypatch.setattr(trials, "parse", lambda lines: parse(read.extend(lines) or lines))
    file, trial = tmp_path / "metrics.jsonl", Reported(failures=1)
    queue = trials.Trials(None, {}, None, tmp_path, "eval/x", 1)
    live = trials.LiveTrial(Job(0, [], tmp_path), trial, None, reported=1)
    queue._report(live)  # no file yet
    lines = [json.dumps({"step": step, "eval/x": step / 2}) + "\n" for step in range(1, 7)]
    lines[3] = '{"step": 4, "train/loss": 1}\n'
    file.write_text("".join(lines[:3]) + lines[3][:5])
    with pytest.raises(OSError, match="locked"):
        queue._report(live)
    queue._report(live)
    assert trial.values == {2: 1.0, 3: 1.5}
    with open(file, "a") as opened:
        opened.write(lines[3][5:] + lines[4])
    queue._report(live)
    assert trial.values == {2: 1.0, 3: 1.5, 5: 2.5}
    assert len(read) == 5
    (tmp_path / "new").write_text("".join(lines))  # as a resumed run replaces it
    (tmp_path / "new").rename(file)
    queue._report(live)
    assert trial.values == {2: 1.0, 3: 1.5, 5: 2.5, 6: 3.0}


@pytest.mark.slow
def test_a_killed_trial_resumes_first(tmp_path):
    words = [*SEARCH, "hydra.sweeper.n_trials=2"]
    assert go(tmp_path, *words, crash="train.step:9") == -9, "in the second"
    assert [t.state for t in study_of(tmp_path).trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    trials = study_of(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert len(jobs_of(tmp_path)) == 2
    assert "steps    2 to 6" in output_of(tmp_path)
    assert sorted(trials[1].intermediate_values) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path):
    words = [*SEARCH, "hydra.sweeper.n_trials=6", "hydra.sweeper.seed=null"]
    processes = [start(tmp_path, *words) for _ in range(2)]
    assert [wait(process) for process in processes] == [0, 0], output_of(tmp_path)
    trials = study_of(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert len(jobs_of(tmp_path)) == 6
    assert all(
        [row["step"] for row in metrics_of(job)] == [*range(1, 7)] for job in jobs_of(tmp_path)
    )


@pytest.mark.slow
def test_a_trial_far_behind_the_median_is_pruned_and_stays_so(tmp_path, monkeypatch):
    """One learning rate trains, the other is far too small."""
    monkeypatch.setattr(trials, "POLL_SECONDS", 0.02)
    (tmp_path / "outputs" / "sweep" / "study").mkdir(parents=True)
    journal = str(tmp_path / "outputs" / "sweep" / "study" / "study.journal")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal))
    for rate in (2e-3, 1e-20):
        study = optuna.create_study(study_name="study", storage=storage, load_if_exists=True)
        study.enqueue_trial({"optimizer.lr": rate})
    words = [word for word in SEARCH if "optimizer.lr" not in word and "job." not in word]
    words += ["optimizer.lr=interval(1e-20,0.1)", "hydra.sweeper.n_trials=2"]
    words += ["hydra.sweeper.startup_trials=1", "job.warmup_steps=0", "job.max_steps=400"]
    words += ["job.log_every=10", "job.sample_every=null", "job.batch_size=4"]
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    trained, pruned = study_of(tmp_path).trials
    assert (trained.state, pruned.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    job = jobs_of(tmp_path)[1]
    assert status_of(job)["state"] == "pruned"
    assert status_of(job)["step"] < 400
    log = (job / "metrics.jsonl").read_bytes()
    assert go(tmp_path, *words, "hydra.sweeper.n_trials=2") == 0, output_of(tmp_path)
    assert (job / "metrics.jsonl").read_bytes() == log


def test_an_unknown_metric_ends_the_search_at_the_first_log_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "POLL_SECONDS", 0.02)
    words = ["job.max_steps=100000", "job.log_every=2", "hydra.sweeper.n_trials=2"]
    status, _, err = run(*SEARCH, *words, "hydra.sweeper.metric=train/los")
    assert status == 2
    assert "hydra.sweeper.metric=train/los: " in err
    assert "Did you mean 'train/loss'?" in err
    (job,) = jobs_of(tmp_path)
    assert status_of(job)["state"] == "preempted"
    assert status_of(job)["step"] < 100000


def test_an_unknown_score_ends_the_search_at_the_first_evaluation(run, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "POLL_SECONDS", 0.02)
    words = ["job.max_steps=100000", "job.evaluate_every=2", "job.evaluate_samples=8"]
    words += ["job.evaluate_steps=2", "features=pixels"]
    words += ["hydra.sweeper.n_trials=2", "hydra.sweeper.metric=eval/kd_digits"]
    status, _, err = run(*SEARCH, *words)
    assert status == 2
    assert "hydra.sweeper.metric=eval/kd_digits: " in err
    assert "Did you mean 'eval/kd_pixels'?" in err
    (job,) = jobs_of(tmp_path)
    assert status_of(job)["state"] == "preempted"
    assert status_of(job)["step"] < 100000


def test_a_missing_metric_ends_the_search_and_can_be_corrected(run, tmp_path):
    status, _, err = run(*SEARCH, "hydra.sweeper.n_trials=3", "hydra.sweeper.metric=fid")
    assert status == 2
    assert "hydra.sweeper.metric=fid: " in err
    assert "train/loss" in err
    assert [trial.state for trial in study_of(tmp_path).trials] == [TrialState.FAIL]
    status, out, err = run(*SEARCH, "hydra.sweeper.n_trials=1")
    assert status == 0, out + err
    assert "was done before" in out
    assert "study    1 done, 0 pruned, 0 failed in all" in out


def test_a_score_that_no_trial_would_measure_is_refused_before_the_first(run, tmp_path):
    status, _, err = run(*SEARCH, "hydra.sweeper.metric=eval/kd_digits")
    assert status == 2
    assert "hydra.sweeper.metric=eval/kd_digits: needs job.evaluate_every" in err
    assert not jobs_of(tmp_path)


def test_a_failed_trial_is_reported(run, tmp_path):
    status, out, _ = run(
        *SEARCH, "hydra.sweeper.n_trials=1", "data.image_size=choice(15)", "model=unet"
    )
    assert status == 1, out
    assert study_of(tmp_path).trials[0].state == TrialState.FAIL
    assert "1 failed" in out


def test_a_stopped_search_leaves_its_trial_open(tmp_path):
    words = [*SEARCH, "hydra.sweeper.n_trials=2", "job.max_steps=100000", "job.sample_every=null"]
    child = start(tmp_path, *words)
    until(lambda: any(map(run_dir.is_locked, jobs_of(tmp_path))), child)
    until(lambda: any((job / "metrics.jsonl").exists() for job in jobs_of(tmp_path)), child)
    os.kill(child, signal.SIGTERM)
    assert wait(child) == 128 + signal.SIGTERM
    assert [trial.state for trial in study_of(tmp_path).trials] == [TrialState.RUNNING]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("hydra.sweeper.direction=down", "hydra.sweeper.direction=down: must be"),
        ("hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0: must be"),
        ("hydra.sweeper.sampler=tpee", "Did you mean 'tpe'?"),
        ("hydra.sweeper.storage=sqlit:////x", "storage=sqlit:////x: cannot be read as a study"),
        ("hydra.sweeper.pruner=mean", "must be one of median, hyperband, none"),
    ],
)
def test_invalid_settings_of_a_search_are_refused(words, message, run):
    status, _, err = run(*SEARCH, words)
    assert status == 2
    assert message in err


def test_a_third_party_launcher_is_refused():
    settings = {
        "metric": "x",
        "direction": "minimize",
        "n_trials": 1,
        "sampler": "tpe",
        "seed": None,
    }
    settings |= {"pruner": "none", "startup_trials": 0, "warmup_steps": 0}
    with pytest.raises(InputError, match="hydra/launcher=serial, slots or slurm"):
        optuna_search.search(None, None, None, [], **settings, storage=None, params=None)


# the stop file


@pytest.mark.slow
def test_a_stop_file_stops_a_run(tmp_path):
    words = [*QUICK, "output_dir=run", "job.max_steps=100000", "job.sample_every=null"]
    child = start(tmp_path, *words)
    until((tmp_path / "run" / "metrics.jsonl").exists, child)
    (tmp_path / "run" / "stop").touch()
    assert wait(child) == 128 + signal.SIGTERM
    assert status_of(tmp_path / "run")["state"] == "preempted"
    assert "the file run/stop" in output_of(tmp_path)
    step = status_of(tmp_path / "run")["step"]
    assert go(tmp_path, "resume=run", f"job.max_steps={step + 20}") == 0, output_of(tmp_path)
    assert not (tmp_path / "run" / "stop").exists()


def test_stop_file_states_how_the_run_ends(tmp_path):
    assert requests.end_state(tmp_path) is None
    for text, end in (("", "preempted"), ("pruned\n", "pruned"), ("x" * 99, "preempted")):
        (tmp_path / "stop").write_text(text)
        assert requests.end_state(tmp_path) == end
    requests.ask_to_stop(tmp_path, "pruned")
    assert [path.name for path in tmp_path.iterdir()] == ["stop"]
    assert requests.end_state(tmp_path) == "pruned"
    requests.forget(tmp_path)
    assert requests.end_state(tmp_path) is None
