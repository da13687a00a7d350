"""job=compare: a table of one ruler's scores, or the fields in which rulers differ."""

import math

import pytest
from support.scored import RULER, SUBJECT, changed, scored

from ddpm.runner.report import score_table
from ddpm.runner.runs import scores


@pytest.fixture
def write_scores(tmp_path):
    """Writes the scores of two evaluations; returns the arguments that compare them."""

    def make(one, other):
        for name, made in (("one", one), ("other", other)):
            (tmp_path / name).mkdir()
            scores.write(tmp_path / name, made)
        return ["job=compare", "scores=[one,other/scores.jsonl]"]

    return make


def test_scores_of_equal_rulers_are_compared(write_scores, run):
    subject = changed(SUBJECT, "sampler.steps", 10)
    status, out, err = run(*write_scores([scored(1.0)], [scored(0.6, subject=subject)]))
    assert (status, err) == (0, "")
    assert "sampler.steps: 5, 10" in out
    half = math.hypot(0.1, 0.1)
    assert f"-0.4000 (-{0.4 + half:.4f} to -{0.4 - half:.4f})" in out
    assert out.splitlines()[-1].split()[-1] == "b"


def test_scores_of_one_evaluation_are_stated_in_full(tmp_path, run):
    made = scored(1.0)
    scores.write(tmp_path, [made, scored(0.5, low=None, high=None, floor=None, reference=None)])
    status, out, err = run("job=compare", f"scores=[{tmp_path}]")
    assert (status, err) == (0, "")
    ruler = f"n = 1,000, against train, ruler {made.ruler_id}"
    assert out.splitlines() == [
        f"kd_mnist 1.000 (95 % interval 0.9000 to 1.100), floor 0.5000, {ruler}",
        f"kd_mnist 0.5000, n = 1,000, ruler {made.ruler_id}",
    ]


def test_proportions_are_printed_in_percent(write_scores, run):
    kinds = {"name": "precision_mnist", "unit": "share", "better": "higher"}
    one = scored(0.954, low=0.9423, high=1.0, floor=0.992, **kinds)
    other = scored(0.0015, low=0.0, high=0.0046, floor=None, **kinds)
    assert score_table.table([one]).splitlines()[-1].split("  ")[1:4] == [
        *("95.4 %", "94.2 to 100 % (as good as real)", "99.20 %"),
    ]
    assert "0.15 % (95 % interval 0 to 0.46 %), n = 1,000" in score_table.stated(other)
    _, out, _ = run(*write_scores([one], [other]))
    assert "-95.25 points (-99.85 to -94.04)" in out


def test_a_difference_within_its_interval_is_not_settled(write_scores, run):
    status, out, _ = run(*write_scores([scored(1.0)], [scored(0.95)]))
    assert status == 0
    assert "not settled" in out


def test_pictures_of_equal_seeds_are_compared_in_pairs(write_scores, run):
    """Groups that vary together, by far more than they differ: the interval is that of the
    differences, by Student's t; of other seeds, that of two independent scores."""
    one = scored(1.0, without=[0.9, 1.0, 1.1, 1.2])
    better = [0.7, 0.8, 0.9, 1.02]
    status, out, _ = run(*write_scores([one], [scored(0.8, without=better)]))
    assert status == 0
    error = math.sqrt(3 / 4 * (3 * 0.005**2 + 0.015**2))  # of the differences from their mean
    half = 3.182446 * error
    assert f"-0.2000 (-{0.2 + half:.4f} to -{0.2 - half:.4f}, paired)" in out
    assert out.split()[-1] == "b"
    for other in (scored(0.8, without=better[:3]), scored(0.8)):
        assert score_table.paired_bounds(one, other) is None
    drawn = changed(SUBJECT, "seeds.first", 7)
    assert "paired" not in score_table.difference(one, scored(0.8, subject=drawn, without=better))


def test_equal_shares_without_spread_are_not_known_exactly():
    """0 of 200 and 0 of 200: no group differs, but each share may be up to 1.9 %."""
    share = {"low": 0.0, "high": 0.019, "unit": "share", "without": [0.0] * 4}
    one = scored(0.0, **share)
    other = scored(0.0, subject=changed(SUBJECT, "checkpoint", "0123456789ab"), **share)
    assert score_table.difference(one, other) == "0 points (-1.900 to 1.900)"
    assert score_table.difference(one, one) == "0 points (0 to 0, paired)"


def test_intervals_of_two_trainings_say_what_they_leave_out(write_scores, run):
    words = write_scores([scored(1.0)], [scored(0.6, subject=changed(SUBJECT, "run", "other"))])
    _, out, _ = run(*words)
    assert score_table.OF_SAMPLES in out.splitlines()
    _, out, _ = run("job=compare", "scores=[one,one]")
    assert score_table.OF_SAMPLES not in out


def test_unlike_rulers_are_refused_with_their_fields(write_scores, run):
    ruler = changed(changed(RULER, "n", 500), "reference.split", "test")
    words = write_scores([scored()], [scored(ruler=ruler)])
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert "kd_mnist: n: 1000, 500; reference.split: train, test" in err
    assert "'allow=[n,reference.split]'" in err
    status, out, err = run(*words, "allow=[n,reference]")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].endswith("differ: n, reference.split")


def test_scores_with_an_unknown_field_are_not_comparable(write_scores, run):
    unknown = [scored(ruler=changed(RULER, "features.resize", None))]
    status, _, err = run(*write_scores(unknown, unknown))
    assert status == 2
    assert "features.resize: unknown, unknown" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scores=[]"], "name run folders"),
        ([], "name run folders"),
        (["scores=[one,nowhere]"], "there is no nowhere"),
        (["scores=[one,other]", "model=unet"], "model: job=compare only reads"),
    ],
)
def test_bad_input_is_refused(words, message, write_scores, run):
    write_scores([scored()], [scored()])
    status, _, err = run("job=compare", *words)
    assert status == 2
    assert message.replace("there is no nowhere", "nowhere: there is no") in err


def test_evaluations_without_a_common_score_are_refused(write_scores, run):
    status, _, err = run(*write_scores([scored()], [scored(name="fd_mnist")]))
    assert status == 2
    assert "one: kd_mnist" in err


def test_interval_of_a_difference_is_that_of_independent_normals():
    bounds = score_table.bounds_of_difference(
        scored(1.0, low=0.7, high=1.3), scored(2.0, low=1.6, high=2.4)
    )
    assert bounds == pytest.approx((0.5, 1.5))
    assert score_table.bounds_of_difference(scored(low=None), scored()) is None
