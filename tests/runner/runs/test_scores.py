"""Scores with passports: which are comparable, and the file that holds them."""

import json

import pytest
from support.scored import RULER, SUBJECT, changed, scored

from ddpm.errors import InputError
from ddpm.runner.runs import scores
from ddpm.runner.safe_io.tree import flatten


def other(value):
    """A minimally different value."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}x"
    return [*value[:-1], value[-1] + 1e-6] if isinstance(value, list) else value + 1e-6


CHANGES = [(p, k) for p in (RULER, SUBJECT) for k in dict(flatten(p))]


def test_passports_have_at_least_24_fields():
    assert len(CHANGES) >= 24


@pytest.mark.parametrize(("passport", "key"), CHANGES, ids=[key for _, key in CHANGES])
def test_each_changed_field_is_named(passport, key):
    value = dict(flatten(passport))[key]
    for wrong in (other(value), None):
        made = changed(passport, key, wrong)
        assert scores.differences(passport, made) == [key]
        assert scores.differences(made, passport) == [key]
        assert scores.ident(made) != scores.ident(passport)
        assert f"{key}: " in scores.described_differences(passport, made)


def test_order_of_fields_does_not_matter():
    turned = {key: RULER[key] for key in reversed(RULER)}
    assert scores.differences(RULER, turned) == []
    assert scores.ident(RULER) == scores.ident(turned) == "b93a0496a1bf"  # on every machine


def test_unknown_field_is_unequal_even_to_itself():
    unknown = changed(RULER, "features.digest", None)
    assert scores.differences(unknown, unknown) == ["features.digest"]
    assert scores.ident(unknown) is None
    within = changed(SUBJECT, "clip", [None, 1.0])
    assert scores.differences(within, within) == ["clip"]


def test_a_missing_field_is_unknown():
    without = {key: value for key, value in RULER.items() if key != "quantise"}
    assert scores.differences(RULER, without) == ["quantise"]


def test_int_bool_and_float_of_equal_value_differ():
    for one, another in ((1, True), (1, 1.0), (0, False)):
        assert scores.differences({"a": one}, {"a": another}) == ["a"]


def test_known_absence_is_stored_as_none_and_equals_itself():
    made = scores.known({"steps": None, "guidance": {}, "clip": (-1, 1), "path": [None]})
    assert made == {"steps": "none", "guidance": "none", "clip": [-1, 1], "path": ["none"]}
    assert scores.differences(made, made) == []


def test_scores_are_read_back_unchanged(tmp_path):
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
def test_invalid_score_files_are_refused_with_one_line(text, reason, tmp_path):
    (tmp_path / "scores.jsonl").write_text(text)
    with pytest.raises(InputError, match=reason) as caught:
        scores.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_scores_are_reported_with_the_job_that_writes_them(tmp_path):
    with pytest.raises(InputError, match="job=evaluate"):
        scores.read(tmp_path)


def test_logged_scores_are_of_the_last_step_and_name_a_second_reference():
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
def test_as_good_as_real_means_the_interval_reaches_the_floor(better, value, good):
    assert scored(value, better=better).as_good_as_real is good
