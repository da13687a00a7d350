"""Scores in reports and searches: one column for each ruler, no best across rulers."""

import pytest
from support.report_folders import run_folder
from support.scored import RULER, SUBJECT, changed, scored

from ddpm.runner.report import comparison, run_record, write
from ddpm.runner.runs import scores
from ddpm.runner.sweeps.search import study as search

OTHER = changed(RULER, "n", 500)
UNKNOWN = changed(RULER, "features.resize", None)


@pytest.fixture
def compared(tmp_path):
    """The comparison of runs with one score each, given by value and ruler (None: no passport)."""

    def make(*made, **changes):
        folders = []
        for i, (value, ruler) in enumerate(made):
            rows = [{"step": 500, "eval/kd_mnist": value}]
            part = {"lr": float(i // changes.get("seeds", 1))}
            folder = run_folder(tmp_path / f"{i}", rows=rows, seed=i, optimizer=part)
            if ruler is not None:
                more = {k: v for k, v in changes.items() if k != "seeds"}
                subject = changed(SUBJECT, "checkpoint", f"{i:012}")
                scores.write(folder, [scored(value, ruler=ruler, **{"subject": subject} | more)])
            folders.append(folder)
        return comparison.make([run_record.read(folder) for folder in folders], "t")

    return make


def bests(made):
    """Column and mean of every statistic that is marked as the best."""
    found = [(m, s) for setting in made.settings for m, s in setting.statistics.items()]
    return [(measure, statistic.mean) for measure, statistic in found if statistic.best]


def test_scores_of_one_ruler_share_a_column_with_a_best(compared):
    made = compared((3.0, RULER), (2.0, RULER))
    assert made.measures[0] == "eval/kd_mnist"
    assert bests(made) == [("eval/kd_mnist", 2.0)]


def test_best_follows_the_direction_of_the_score(compared):
    made = compared((3.0, RULER), (2.0, RULER), better="higher")
    assert bests(made) == [("eval/kd_mnist", 3.0)]


def test_scores_without_direction_have_no_best(compared):
    assert bests(compared((3.0, RULER), (2.0, RULER), better="neither")) == []


def test_runs_that_scored_the_same_pictures_count_once(compared):
    """As in a sweep of `seed`, whose interval over seeds would have width 0."""
    made = compared((1.0, RULER), (1.0, RULER), seeds=2, subject=SUBJECT)
    (setting,) = made.settings
    statistic = setting.statistics["eval/kd_mnist"]
    assert (statistic.mean, statistic.half, statistic.n) == (1.0, None, 1)
    assert any("job.first_seed draws others" in note for note in made.notes)


@pytest.mark.parametrize("rulers", [(RULER, OTHER), (RULER, None), (UNKNOWN, UNKNOWN)])
def test_scores_of_different_rulers_have_no_common_best(rulers, compared):
    made = compared((3.0, rulers[0]), (2.0, rulers[1]))
    assert len([m for m in made.measures if m.startswith("eval/kd_mnist")]) == 2
    assert bests(made) == []
    assert any("do not compare" in note for note in made.notes)


def test_scores_without_passports_have_no_best_across_schedules(tmp_path):
    folders = [
        run_folder(
            tmp_path / f"{i}",
            rows=[{"step": 500, "eval/loss": value}],
            choices={"schedule": schedule},
        )
        for i, (value, schedule) in enumerate([(0.1, "cosine"), (0.3, "linear"), (0.2, "sigmoid")])
    ]
    made = comparison.make([run_record.read(folder) for folder in folders], "t")
    assert bests(made) == []


def test_note_names_the_differing_ruler_field(compared):
    notes = compared((3.0, RULER), (2.0, OTHER)).notes
    assert any("(n: 1000, 500)" in note for note in notes)


def test_seeds_are_averaged_within_one_ruler_only(compared):
    made = compared((1.0, RULER), (3.0, RULER), (9.0, OTHER), (5.0, OTHER), seeds=4)
    (setting,) = made.settings
    means = {m: s.mean for m, s in setting.statistics.items() if m.startswith("eval/")}
    ids = [scores.ident(ruler) for ruler in (RULER, OTHER)]
    columns = [f"eval/kd_mnist [{number}]" for number in ids]
    assert means == dict(zip(columns, (2.0, 7.0), strict=True))


def test_report_shows_interval_and_floor(compared, tmp_path):
    compared((0.55, RULER), (2.0, RULER))
    write([tmp_path / "0", tmp_path / "1"], tmp_path / "r", "t")
    text = (tmp_path / "r" / "report.md").read_text()
    assert "(0.4500 to 0.6500), floor 0.5000, as good as real, at n = 1,000" in text
    assert "(1.900 to 2.100), floor 0.5000 |" in text


def test_damaged_score_file_is_noted(tmp_path):
    folder = run_folder(tmp_path / "a", losses=[1.0])
    (folder / scores.FILE).write_text("{\n")
    made = comparison.make([run_record.read(folder)], "t")
    assert any("not a file of scores" in note for note in made.notes)


class Study:
    """A stand-in for an Optuna study."""

    def __init__(self, direction="MINIMIZE"):
        self.user_attrs = {}
        self.direction = type("D", (), {"name": direction})

    def set_user_attr(self, name, value):
        self.user_attrs[name] = value


def test_search_refuses_scores_of_another_ruler_than_its_first(tmp_path):
    study = Study()
    reasons = []
    for name, ruler in (("a", RULER), ("b", RULER), ("c", OTHER)):
        (tmp_path / name).mkdir()
        scores.write(tmp_path / name, [scored(ruler=ruler)])
        reasons.append(search.why_unlike(study, tmp_path / name, "eval/kd_mnist"))
        if name == "a":
            assert not study.user_attrs, "a question changes nothing"
        search.adopt_ruler(study, tmp_path / name, "eval/kd_mnist")
    assert reasons[:2] == [None, None]
    assert "n: 1000, 500" in reasons[2]
    assert list(study.user_attrs.values()) == [RULER]
    assert search.why_unlike(study, tmp_path / "c", "train/loss") is None
    wrong = search.why_unlike(Study("MAXIMIZE"), tmp_path / "a", "eval/kd_mnist")
    assert "hydra.sweeper.direction=minimize" in wrong
