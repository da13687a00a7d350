"""hydra/sweeper=optuna: what is chosen, what is told, and a study that goes on."""

import os
import signal

import pytest
from conftest import TINY
from crash_parts import go, said, start, until, wait
from test_run import metrics_of, status_of

from ddpm import asked, run_dir
from ddpm.errors import InputError
from ddpm.sweeps import folder

optuna = pytest.importorskip("optuna")

from optuna.distributions import (  # noqa: E402
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState  # noqa: E402

from ddpm.sweeps import search, space  # noqa: E402

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


def test_an_empty_range_is_a_mistake():
    with pytest.raises(InputError, match=r"optimizer.lr=interval\(2.0,1.0\): cannot be searched"):
        space.split(["optimizer.lr=interval(2.0,1.0)"])


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
    monkeypatch.setattr(search, "LOOK_SECONDS", 0.02)
    (tmp_path / "outputs" / "sweep" / "study").mkdir(parents=True)
    journal = str(tmp_path / "outputs" / "sweep" / "study" / "study.journal")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal))
    for rate in (2e-3, 1e-20):
        study = optuna.create_study(study_name="study", storage=storage, load_if_exists=True)
        study.enqueue_trial({"optimizer.lr": rate})
    words = [word for word in SEARCH if "optimizer.lr" not in word and "job." not in word]
    words += ["optimizer.lr=interval(1e-20,0.1)", "hydra.sweeper.n_trials=2"]
    words += ["hydra.sweeper.startup_trials=1", "job.warmup_steps=0", "job.max_steps=1000"]
    words += ["job.log_every=10", "job.sample_every=null", "job.batch_size=4"]
    assert go(tmp_path, *words) == 0, said(tmp_path)
    good, bad = study_of(tmp_path).trials
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    job = jobs_of(tmp_path)[1]
    assert status_of(job)["state"] == "pruned"
    assert status_of(job)["step"] < 1000
    before = (job / "metrics.jsonl").read_bytes()
    assert go(tmp_path, *words, "hydra.sweeper.n_trials=2") == 0, said(tmp_path)
    assert (job / "metrics.jsonl").read_bytes() == before


def test_a_metric_that_nobody_logs_is_named(run, tmp_path):
    _, out, _ = run(*SEARCH, "hydra.sweeper.n_trials=1", "hydra.sweeper.metric=fid")
    assert "hydra.sweeper.metric=fid: the job logged none; it has" in out
    assert "train/loss" in out
    assert study_of(tmp_path).trials[0].state == TrialState.FAIL


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
        ("hydra.sweeper.pruner=mean", "must be one of median, hyperband, none"),
        ("hydra/launcher=basic", "works with hydra/launcher=serial, slots or slurm"),
    ],
)
def test_knobs_that_cannot_be(words, message, run):
    status, _, err = run(*SEARCH, words)
    assert status == 2
    assert message in err


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
    assert asked.end_of(tmp_path) is None
    for text, end in (("", "preempted"), ("pruned\n", "pruned"), ("x" * 99, "preempted")):
        (tmp_path / "stop").write_text(text)
        assert asked.end_of(tmp_path) == end
    asked.to_stop(tmp_path, "pruned")
    assert asked.end_of(tmp_path) == "pruned"
    asked.forget(tmp_path)
    assert asked.end_of(tmp_path) is None
