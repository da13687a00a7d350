"""Scores with passports: what compares, what does not, and what a file of them may hold."""

import json

import pytest
from support.scored import RULER, SUBJECT, changed, scored

from ddpm.errors import InputError
from ddpm.runner.runs import scores
from ddpm.runner.safe_io.tree import flatten


def other(value):
    """Another value, as near as can be."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}x"
    return [*value[:-1], value[-1] + 1e-6] if isinstance(value, list) else value + 1e-6


CHANGES = [(p, k) for p in (RULER, SUBJECT) for k in dict(flatten(p))]


def test_there_are_enough_changes():
    assert len(CHANGES) >= 24


@pytest.mark.parametrize(("passport", "key"), CHANGES, ids=[key for _, key in CHANGES])
def test_a_single_change_is_found_by_its_name(passport, key):
    value = dict(flatten(passport))[key]
    for wrong in (other(value), None):
        made = changed(passport, key, wrong)
        assert scores.differences(passport, made) == [key]
        assert scores.differences(made, passport) == [key]
        assert scores.ident(made) != scores.ident(passport)
        assert f"{key}: " in scores.described_differences(passport, made)


def test_equal_passports_are_equal_whatever_their_order():
    turned = {key: RULER[key] for key in reversed(RULER)}
    assert scores.differences(RULER, turned) == []
    assert scores.ident(RULER) == scores.ident(turned) == "b93a0496a1bf"  # on every machine


def test_an_unknown_field_equals_nothing_not_even_itself():
    unknown = changed(RULER, "features.digest", None)
    assert scores.differences(unknown, unknown) == ["features.digest"]
    assert scores.ident(unknown) is None
    within = changed(SUBJECT, "clip", [None, 1.0])
    assert scores.differences(within, within) == ["clip"]


def test_a_missing_field_is_unknown():
    without = {key: value for key, value in RULER.items() if key != "quantise"}
    assert scores.differences(RULER, without) == ["quantise"]


def test_one_true_and_one_point_zero_are_three_values():
    for one, another in ((1, True), (1, 1.0), (0, False)):
        assert scores.differences({"a": one}, {"a": another}) == ["a"]


def test_what_we_know_to_be_absent_is_said_and_equals_itself():
    made = scores.known({"steps": None, "guidance": {}, "clip": (-1, 1), "path": [None]})
    assert made == {"steps": "none", "guidance": "none", "clip": [-1, 1], "path": ["none"]}
    assert scores.differences(made, made) == []


def test_scores_are_read_as_they_were_written(tmp_path):
    made = [scored(), scored(2.0, low=None, high=None, floor=None, reference=None, unit="bits")]
    scores.write(tmp_path, made)
    assert scores.read(tmp_path) == scores.read(tmp_path / "scores.jsonl") == made
    row = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
    assert row["ruler_id"] == scores.ident(RULER)
    assert row["subject_id"] == scores.ident(SUBJECT)


def row(**changes):
    return json.dumps(json.loads(scored().line()) | changes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no scores"),
        ("[]\n", "not an object"),
        ("{\n", "not a file of scores"),
        (row(value=None), "value is not a number"),
        (row(n=True), "n is not a number"),
        (row(floor="y"), "floor is not a number"),
        (row(ruler="z"), "ruler is missing"),
        (row(better="z"), "better is z"),
    ],
)
def test_a_file_of_something_else_is_refused_in_a_line(text, reason, tmp_path):
    (tmp_path / "scores.jsonl").write_text(text)
    with pytest.raises(InputError, match=reason) as caught:
        scores.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_scores_says_what_writes_them(tmp_path):
    with pytest.raises(InputError, match="job=evaluate"):
        scores.read(tmp_path)


def test_the_last_step_counts_and_a_second_reference_has_a_name_of_its_own():
    made = [scored(3.0, step=10), scored(2.0, step=20), scored(4.0, reference="held_out", step=20)]
    named = scores.logged(made)
    assert {name: score.value for name, score in named.items()} == {
        "eval/kd_mnist": 2.0,
        "eval/kd_mnist_held_out": 4.0,
    }


@pytest.mark.parametrize(
    ("better", "value", "good"),
    [
        *(("lower", 0.55, True), ("lower", 0.3, True), ("lower", 0.7, False)),
        *(("higher", 0.7, True), ("higher", 0.3, False), ("neither", 0.5, False)),
    ],
)
def test_as_good_as_real_is_an_interval_that_reaches_the_floor(better, value, good):
    assert scored(value, better=better).as_good_as_real is good
