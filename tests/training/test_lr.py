"""The learning rate: closed forms, and what runs use and log."""

import math

import pytest
from support.base import TINY
from support.runs import go, metrics_of, state_of

from ddpm.runner.config import checks
from ddpm.training.lr import LearningRate

KINDS = ("inverse", "cosine", "linear")
WARM = [*TINY, "objective=eps", "job.warmup_steps=2"]
COSINE = [*WARM, "job.lr_decay=cosine"]


def test_inverse_decay_warms_up_stays_and_falls_as_1_over_the_step():
    lr = LearningRate(2.0, 4, 10)
    assert [lr(n) for n in (0, 1, 2, 3, 9)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert lr(19) == pytest.approx(1.0)
    assert lr(99) == pytest.approx(0.2)
    assert LearningRate(2.0, 0, None)(10**6) == 2.0


@pytest.mark.parametrize("start", [None, 1, 3, 40])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_inverse_decay_is_the_former_schedule_whatever_the_length(warmup, start):
    for n in range(200):
        former = 3e-3 * min(1, (n + 1) / max(warmup, 1), (start or math.inf) / (n + 1))
        assert LearningRate(3e-3, warmup, start)(n) == former
        assert LearningRate(3e-3, warmup, start, "inverse", total=50)(n) == former


def test_cosine_decay_at_the_first_middle_and_last_step():
    lr = LearningRate(2.0, 4, 10, "cosine", total=30)
    assert [lr(n) for n in (0, 3, 9, 10)] == [0.5, 2.0, 2.0, 2.0]
    assert lr(20) == pytest.approx(1.0)  # half of the way
    assert lr(15) == pytest.approx(2 * (1 + math.sqrt(0.5)) / 2)  # a quarter of it
    assert lr(29) == pytest.approx(1 + math.cos(math.pi * 19 / 20))
    assert 0 < lr(29) < 0.02
    assert lr(30) == 0


def test_linear_decay_at_the_first_middle_and_last_step():
    lr = LearningRate(2.0, 4, 10, "linear", total=30)
    assert [lr(n) for n in (0, 3, 9, 10, 15, 20, 29, 30)] == [0.5, 2, 2, 2, 1.5, 1, 0.1, 0]


@pytest.mark.parametrize("decay", ["cosine", "linear"])
@pytest.mark.parametrize("total", [10, 10**6])
def test_decay_to_0_falls_at_each_step_and_is_above_0_at_the_last(decay, total):
    lr = LearningRate(1.0, 3, None, decay, total)
    assert lr(2) == lr(3) == 1  # the end of the warm-up, and the start of the decay
    last = [lr(n) for n in range(total - 5, total)]
    assert last == sorted(last, reverse=True)
    assert len(set(last)) == 5
    left = 1 / (total - 3)
    wanted = left if decay == "linear" else (math.pi / 2 * left) ** 2
    assert last[-1] == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("decay", KINDS)
def test_decay_that_begins_within_the_warm_up_ends_it(decay):
    lr = LearningRate(1.0, 100, 4, decay, total=8)
    rates = [lr(n) for n in range(8)]
    assert rates[:5] == [0.01, 0.02, 0.03, 0.04, 0.05]
    assert max(rates) < 0.1


@pytest.mark.parametrize("start", [7, 8, 100])
@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_decay_from_the_end_of_the_run_on_does_nothing(decay, start):
    lr = LearningRate(1.0, 0, start, decay, total=8)
    assert [lr(n) for n in range(8)] == [1] * 8
    assert "no decay" in lr.describe(0)
    job = {"max_steps": 8, "warmup_steps": 0, "lr_decay": decay, "lr_decay_start": start}
    (line,) = checks.warnings({"job": job})
    assert line.startswith(f"job.lr_decay_start={start}: ")
    assert f"job.lr_decay={decay}" in line
    assert "job.max_steps=8" in line
    (line,) = checks.warnings({"job": job | {"warmup_steps": start, "lr_decay_start": None}})
    assert line.startswith(f"job.warmup_steps={start}: ")
    for fine in ({"lr_decay_start": 6}, {"lr_decay": "inverse"}, {"max_steps": None}):
        assert not checks.warnings({"job": job | fine})


def test_warm_up_that_outlasts_the_run_is_described():
    line = LearningRate(2e-4, 500, None, total=60).describe(0)
    assert line.startswith("2.4e-05 at the last step: ")
    assert "job.warmup_steps" in line
    assert LearningRate(2e-4, 500, None, total=500).describe(0) is None
    assert LearningRate(2e-4, 500, None).describe(0) is None


def rates_of(folder):
    return [row["train/lr"] / 2e-4 for row in metrics_of(folder)]


def test_run_with_cosine_decay_uses_logs_and_prints_it(run, tmp_path):
    out = go(run, *COSINE, "output_dir=run")
    halves = [(1 + math.cos(math.pi * left / 4)) / 2 for left in range(4)]
    assert rates_of(tmp_path / "run") == pytest.approx([0.5, 1, *halves])
    (group,) = state_of(tmp_path / "run", 6)["optimizer"]["param_groups"]
    assert group["lr"] == metrics_of(tmp_path / "run")[-1]["train/lr"]
    assert "rate     cosine decay to 0 from step 2 to 6\n" in out


def test_run_without_a_decay_to_0_prints_no_rate(run):
    assert "rate " not in go(run, *WARM, "job.lr_decay_start=3")


def test_classifier_may_decay_linearly_over_epochs(run, tmp_path):
    """9 steps are an epoch of 1,617 digits; job.max_steps would be later."""
    left = ("model=", "sampler", "job.max_steps", "job.batch", "job.num_samples")
    words = [word for word in TINY if not word.startswith(left)]
    words += ["job=train_classifier", "model.widths=[4,8]", "model.num_heads=1"]
    words += ["job.batch_size=180", "job.max_epochs=0.5", "job.max_steps=800"]
    words += ["job.warmup_steps=0", "job.lr_decay=linear", "job.lr_decay_start=1"]
    out = go(run, *words, "output_dir=run")
    assert "rate     linear decay to 0 from step 1 to 5\n" in out
    assert rates_of(tmp_path / "run") == pytest.approx([1, 1, 0.75, 0.5, 0.25])


def test_swept_length_is_the_end_of_each_job(run, tmp_path):
    words = ["-m", "sweep=lengths", *COSINE, "job.max_steps=4,5"]
    go(run, *words)
    jobs = sorted((tmp_path / "outputs" / "sweep" / "lengths").glob("*-convnet-digits"))
    assert [rates_of(job) for job in jobs] == [
        pytest.approx([0.5, 1, 1, 0.5]),
        pytest.approx([0.5, 1, 1, 0.75, 0.25]),
    ]
    status, out, err = run(*words)  # the same jobs, which are done
    assert status == 0, out + err
    assert out.count("was done before") == 2


# another length on resume


@pytest.fixture
def cosine(run, tmp_path):
    go(run, *COSINE, "output_dir=run")
    return tmp_path / "run"


@pytest.mark.parametrize("word", ["job.max_steps=8", "job.max_steps=5", "job.max_epochs=1"])
def test_length_on_which_the_rate_depends_is_fixed_on_resume(word, cosine, run):
    key, old = word.partition("=")[0], "6" if "steps" in word else "None"
    before = (cosine / "config.yaml").read_bytes()
    status, _, err = run("resume=run", word)
    assert status == 2
    assert (
        f"{word}: resume=run was trained with {old}, and job.lr_decay=cosine depends on it" in err
    )
    assert f"'allow_changes=[{key}]'" in err
    assert (cosine / "config.yaml").read_bytes() == before


def test_same_length_is_accepted_on_resume(cosine, run):
    status, out, err = run("resume=run", "job.max_steps=6")
    assert status == 0, out + err
    assert "all 6 are done; a larger job.max_steps with 'allow_changes=[job.max_steps]'" in out


def test_allowed_length_decides_the_rates_from_there_on(cosine, run):
    before = rates_of(cosine)
    out = go(run, "resume=run", "job.max_steps=10", "allow_changes=[job.max_steps]")
    assert "changed  job.max_steps: 6 -> 10" in out
    assert "rate     cosine decay to 0 from step 2 to 10, 0.0001 at step 6\n" in out
    later = [(1 + math.cos(math.pi * n / 8)) / 2 for n in range(4, 8)]
    assert rates_of(cosine) == pytest.approx([*before, *later])


def test_run_of_inverse_decay_may_end_by_a_decay_to_0(run, tmp_path):
    go(run, *WARM, "output_dir=run")
    words = ["job.max_steps=10", "job.lr_decay=linear", "job.lr_decay_start=6"]
    allowed = "allow_changes=[job.lr_decay,job.lr_decay_start]"
    go(run, "resume=run", *words, allowed)
    assert rates_of(tmp_path / "run")[6:] == pytest.approx([1, 0.75, 0.5, 0.25])
