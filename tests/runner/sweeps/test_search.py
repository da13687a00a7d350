"""hydra/sweeper=optuna: what is chosen, what is told, and a study that goes on."""

import os
import re
import signal

import pytest
from support.base import TINY
from support.crash import go, said, start, until, wait
from support.runs import metrics_of, status_of

from ddpm.errors import InputError
from ddpm.runner.runs import run_dir, stop_file
from ddpm.runner.sweeps import folder

optuna = pytest.importorskip("optuna")

from optuna.distributions import (  # noqa: E402
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState  # noqa: E402

from ddpm.runner.sweeps.search import optuna_search, space, trials  # noqa: E402
from ddpm.runner.sweeps.search import study as shared  # noqa: E402

QUICK = [word for word in TINY if "lr=" not in word]
SEARCH = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.sampler=random", "hydra.sweeper.seed=1"]
SEARCH += ["sweep=study", *QUICK, "optimizer.lr=tag(log, interval(1e-5, 1e-2))"]


def study_of(home, name="study"):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = home / "outputs" / "sweep" / name / "study.journal"
    backend = optuna.storages.journal.JournalFileBackend(str(file))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))


def jobs_of(home, name="study"):
    return folder.jobs(home / "outputs" / "sweep" / name)


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
def test_what_a_word_lets_choose_from(word, expected):
    fixed, chosen = space.split(["data=digits", word])
    assert fixed == ["data=digits"]
    assert chosen == {word.split("=")[0]: expected}


@pytest.mark.parametrize("words", [["data=digits"], []])
def test_a_search_for_nothing_is_a_mistake(words):
    with pytest.raises(InputError, match="nothing to choose"):
        space.split(words)


@pytest.mark.parametrize(
    "word",
    ["seed=interval(2.0,1.0)", "seed=range(1,10,0)", "seed=range(9,1)", "seed=range(1,9,-1)"],
)
def test_an_empty_range_is_a_mistake(word):
    with pytest.raises(InputError, match=f"{re.escape(word)}: cannot be searched"):
        space.split([word])


def test_all_there_is_to_choose():
    _, chosen = space.split(["model=unet,resunet", "seed=1,2,1"])
    assert space.count(chosen) == 4
    tried = {"model=unet seed=1", "model=unet seed=2", "model=resunet seed=1"}
    assert space.untried(chosen, tried) == {"model": "resunet", "seed": "2"}
    assert space.untried(chosen, tried | {"model=resunet seed=2"}) is None
    assert space.count(space.split(["seed=1,2", "optimizer.lr=interval(1,2)"])[1]) is None


# a study and the commands that go on with it


def agreed(words=("data=digits",), metric="train/loss", direction="minimize", study=None):
    """A study after a command with these words."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = study or optuna.create_study()
    fixed, chosen = space.split([*words, "model=unet,resunet"])
    shared.agree(made, "here", metric, direction, fixed, chosen)
    return made


def test_a_study_is_of_one_thing():
    study = agreed(["data=digits", "job.max_steps=5"])
    same = ["hydra/launcher=slots", "job.max_steps=7", "tracker.project=x", "team=a", "sweep=b"]
    agreed([*same, "job.num_workers=1", "job.max_steps=5", "data=digits"], study=study)
    with pytest.raises(InputError, match=r"job.max_steps=9: here has a study with job.max_steps=5"):
        agreed(["data=digits", "job.max_steps=9"], study=study)
    with pytest.raises(InputError, match=r"nothing: here has a study with job.max_steps=5 instead"):
        agreed(study=study)
    with pytest.raises(InputError, match=r"direction=maximize: here has a study to minimize"):
        agreed(["data=digits", "job.max_steps=5"], direction="maximize", study=study)
    with pytest.raises(InputError, match=r"that chooses model. Say"):
        shared.agree(study, "here", "train/loss", "minimize", [], ["model", "seed"])


def test_a_metric_may_be_put_right_until_it_was_logged():
    study = agreed(metric="los")
    agreed(study=study)
    study.tell(study.ask(), 1.0)
    with pytest.raises(InputError, match="metric=los: here has a study of train/loss"):
        agreed(metric="los", study=study)


def test_other_choices_are_a_mistake_and_leave_no_trial(run, tmp_path):
    words = [*SEARCH[:-1], "hydra.sweeper.n_trials=1"]
    begin(tmp_path, {"schedule": "linear"}, schedule=CategoricalDistribution(["linear", "cosine"]))
    status, _, err = run(*words, "schedule=linear,cosine,sigmoid")
    assert status == 2
    assert "schedule: is chosen from linear,cosine,sigmoid now, and was from linear,cosine" in err
    assert len(study_of(tmp_path).trials) == 1


def begin(home, params, **distributions):
    """The study as an earlier command has left it, with a trial that was done."""
    folder = home / "outputs" / "sweep" / "study"
    folder.mkdir(parents=True)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    study = optuna.create_study(study_name="study", storage=optuna.storages.JournalStorage(backend))
    study.add_trial(
        optuna.trial.create_trial(params=params, distributions=distributions, value=1.0)
    )
    return study


def test_what_was_half_chosen_or_tried_is_not_run(run, tmp_path):
    """All there is was tried; a trial whose process died while it chose has no job."""
    both = CategoricalDistribution(["linear", "cosine"])
    study = begin(tmp_path, {"schedule": "linear"}, schedule=both)
    study.tell(study.ask({"schedule": CategoricalDistribution(["linear", "cosine"])}), 2.0)
    study.enqueue_trial({"schedule": "linear"})
    study.enqueue_trial({"schedule": "cosine"})
    half = study.ask()
    words = [*SEARCH[:-1], "schedule=linear,cosine", "hydra.sweeper.n_trials=9"]
    (tmp_path / "outputs" / "sweep" / "study" / "study.journal").open("a").write('{"torn": ')
    status, out, err = run(*words)
    assert status == 0, out + err
    trials = study_of(tmp_path).trials
    assert trials[half.number].state == TrialState.FAIL
    assert "combinations were tried" in out
    assert ", 0 pruned, 0 failed in all" in out


def test_a_journal_that_is_damaged_is_named(run, tmp_path):
    begin(tmp_path, {})
    (tmp_path / "outputs" / "sweep" / "study" / "study.journal").write_bytes(b'{"x\n{}\n')
    status, _, err = run(*SEARCH)
    assert status == 2
    assert "outputs/sweep/study/study.journal: cannot be read as a study" in err


def test_what_failed_is_tried_again_by_the_next_command():
    study = agreed()
    _, chosen = space.split(["model=unet,resunet"])
    for state in (TrialState.FAIL, TrialState.COMPLETE):
        study.tell(study.ask(chosen), 1.0 if state == TrialState.COMPLETE else None, state)
    assert len(shared.begun(study)) == 2
    shared.again(study, chosen)
    shared.again(study, chosen)
    assert len(study.trials) == 3, "once"
    assert len(shared.begun(study)) == 1
    trial = study.ask(chosen)
    assert trial.params == study.trials[0].params
    assert trial.user_attrs == {"again": 0}
    assert len(shared.begun(study)) == 2


def test_a_search_tells_the_loss_and_goes_on(run, tmp_path):
    status, out, err = run(*SEARCH, "hydra.sweeper.n_trials=2", "model=convnet,unet")
    assert status == 0, out + err
    assert "2 done, 0 failed" in out
    status, out, err = run(*SEARCH, "hydra.sweeper.n_trials=3", "model=convnet,unet")
    assert status == 0, out + err
    assert "2 of 3 trials there" in out
    assert "1 done, 0 failed" in out
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
    assert "3 of 3 trials there" in out


def test_a_trial_that_was_killed_is_the_first_to_go_on(tmp_path):
    words = [*SEARCH, "hydra.sweeper.n_trials=2"]
    assert go(tmp_path, *words, crash="train.step:9") == -9, "in the second"
    assert [t.state for t in study_of(tmp_path).trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert go(tmp_path, *words) == 0, said(tmp_path)
    trials = study_of(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert len(jobs_of(tmp_path)) == 2
    assert "steps    2 to 6" in said(tmp_path)
    assert sorted(trials[1].intermediate_values) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path):
    words = [*SEARCH, "hydra.sweeper.n_trials=6", "hydra.sweeper.seed=null"]
    one, other = start(tmp_path, *words), start(tmp_path, *words)
    assert (wait(one), wait(other)) == (0, 0), said(tmp_path)
    trials = study_of(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert len(jobs_of(tmp_path)) == 6
    assert all(
        [row["step"] for row in metrics_of(job)] == [*range(1, 7)] for job in jobs_of(tmp_path)
    )


def test_a_hopeless_trial_is_pruned_and_stays_so(tmp_path, monkeypatch):
    """One rate trains, the other cannot: that trial is stopped long before its last step."""
    monkeypatch.setattr(trials, "LOOK_SECONDS", 0.02)
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
    assert go(tmp_path, *words) == 0, said(tmp_path)
    good, bad = study_of(tmp_path).trials
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    job = jobs_of(tmp_path)[1]
    assert status_of(job)["state"] == "pruned"
    assert status_of(job)["step"] < 400
    before = (job / "metrics.jsonl").read_bytes()
    assert go(tmp_path, *words, "hydra.sweeper.n_trials=2") == 0, said(tmp_path)
    assert (job / "metrics.jsonl").read_bytes() == before


def test_a_metric_that_nobody_logs_ends_the_search_and_can_be_put_right(run, tmp_path):
    status, _, err = run(*SEARCH, "hydra.sweeper.n_trials=3", "hydra.sweeper.metric=fid")
    assert status == 2
    assert "hydra.sweeper.metric=fid: the job logged none; it has" in err
    assert "train/loss" in err
    assert [trial.state for trial in study_of(tmp_path).trials] == [TrialState.FAIL]
    status, out, err = run(*SEARCH, "hydra.sweeper.n_trials=1")
    assert status == 0, out + err
    assert "was done before" in out
    assert "study    1 done, 0 pruned, 0 failed in all" in out


def test_a_failed_trial_is_told(run, tmp_path):
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
        ("hydra.sweeper.direction=down", "hydra.sweeper.direction=down: must be one of minimize"),
        ("hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0: must be a number from 1"),
        ("hydra.sweeper.sampler=tpee", "Did you mean 'tpe'?"),
        ("hydra.sweeper.storage=sqlit:////x", "storage=sqlit:////x: cannot be read as a study"),
        ("hydra.sweeper.pruner=mean", "must be one of median, hyperband, none"),
    ],
)
def test_knobs_that_cannot_be(words, message, run):
    status, _, err = run(*SEARCH, words)
    assert status == 2
    assert message in err


def test_a_launcher_that_is_not_ours_is_a_mistake():
    knobs = {"metric": "x", "direction": "minimize", "n_trials": 1, "sampler": "tpe", "seed": None}
    knobs |= {"pruner": "none", "startup_trials": 0, "warmup_steps": 0}
    with pytest.raises(InputError, match="works with hydra/launcher=serial, slots or slurm"):
        optuna_search.search(object(), None, None, [], **knobs, storage=None, params=None)


# a file asks to stop


def test_a_file_asks_a_run_to_stop(tmp_path):
    words = [*QUICK, "output_dir=run", "job.max_steps=100000", "job.sample_every=null"]
    child = start(tmp_path, *words)
    until((tmp_path / "run" / "metrics.jsonl").exists, child)
    (tmp_path / "run" / "stop").touch()
    assert wait(child) == 128 + signal.SIGTERM
    assert status_of(tmp_path / "run")["state"] == "preempted"
    assert "the file run/stop" in said(tmp_path)
    step = status_of(tmp_path / "run")["step"]
    assert go(tmp_path, "resume=run", f"job.max_steps={step + 20}") == 0, said(tmp_path)
    assert not (tmp_path / "run" / "stop").exists()


def test_words_of_the_file(tmp_path):
    assert stop_file.end_of(tmp_path) is None
    for text, end in (("", "preempted"), ("pruned\n", "pruned"), ("x" * 99, "preempted")):
        (tmp_path / "stop").write_text(text)
        assert stop_file.end_of(tmp_path) == end
    stop_file.to_stop(tmp_path, "pruned")
    assert [path.name for path in tmp_path.iterdir()] == ["stop"]
    assert stop_file.end_of(tmp_path) == "pruned"
    stop_file.forget(tmp_path)
    assert stop_file.end_of(tmp_path) is None
