"""Intervals, seeded draws and cached results."""

from types import SimpleNamespace

import pytest
import torch
from support.material import Fake, material

from ddpm.errors import InputError
from ddpm.evaluation.needs import check_needs
from ddpm.metrics import copies, fd, kd, prdc, sets
from ddpm.statistics.student import student_95


def test_student_quantiles_match_tables():
    table = {1: 12.7062, 2: 4.3027, 4: 2.7764, 19: 2.0930, 30: 2.0423, 1000: 1.9623}
    for degrees, expected in table.items():
        assert student_95(degrees) == pytest.approx(expected, abs=5e-5)


def test_wilson_interval_of_a_proportion():
    assert sets.wilson(0.0, 100) == pytest.approx((0, 0.036993), abs=1e-6)
    assert sets.wilson(0.5, 100) == pytest.approx((0.403832, 0.596168), abs=1e-6)
    assert sets.wilson(1.0, 3)[1] == 1


def test_draws_cover_the_whole_set_and_depend_on_the_seed():
    drawn = sets.draw(1000, 100, 0, "a")
    assert len(drawn.unique()) == 100
    assert drawn.max() > 900
    assert drawn.equal(sets.draw(1000, 100, 0, "a"))
    assert not drawn.equal(sets.draw(1000, 100, 1, "a"))
    assert not drawn.equal(sets.draw(1000, 100, 0, "b"))
    assert len(sets.draw(50, 100, 0, "a")) == 50


def test_blocks_cover_all_rows():
    assert list(sets.blocks(5, 2, 4)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(sets.blocks(2, 100, 4)) == [slice(0, 1), slice(1, 2)]


def test_memo_reuses_recent_results_for_the_same_tensor():
    calls, memo = [], sets.Memo(most=2)
    a, b, c = torch.zeros(3, 1)

    def f(x, n):
        calls.append(n)
        return n

    for x, n in ((a, 1), (a, 1), (b, 2), (a, 1), (c, 3), (a, 1), (b, 4)):
        assert memo(f, x, n) == n
    assert calls == [1, 2, 3, 4]


def test_group_jackknife_gives_the_standard_error_of_independent_values():
    """A mean of 400 numbers: the jackknife over 20 groups has its standard error on average."""
    x = torch.randn(200, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = torch.tensor([sets.without_groups(row) for row in x])
    assert parts.shape == (200, 20)
    assert parts[0, 3] == pytest.approx((x[0].sum() - x[0, 3::20].sum()).item() / 380)
    errors = torch.tensor([sets.jackknife_error(row) for row in parts])
    assert errors.square().mean().sqrt() == pytest.approx(1 / 20, rel=0.04)
    assert sets.without_groups(x[0, :39]) is None


@pytest.mark.parametrize("make", [fd.FD, kd.KD, prdc.PRDC, copies.Copies])
def test_leave_group_out_scores_average_to_the_score(make):
    """Each is a score of nearly all images."""
    for score in make().measure(material(n=100, d=3)):
        if score.without is None:
            assert score.name.startswith(("fd_inf", "nearest"))
            continue
        mean = sum(score.without) / len(score.without)
        assert mean == pytest.approx(score.value, abs=0.05 * (1 + abs(score.value)))


@pytest.mark.parametrize("make", [fd.FD, kd.KD, prdc.PRDC])
def test_few_held_out_pictures_give_scores_against_train_without_a_floor(make):
    few, none = material(held_out=2), material(held_out=None)
    scores = make(reference="train").measure(few)
    assert scores == make(reference="train").measure(none)
    assert all(score.floor is None for score in scores)
    for reference in ("both", "held_out"):
        with pytest.raises(InputError, match="held-out"):
            make(reference=reference).measure(few)


@pytest.mark.parametrize("make", [fd.FD, kd.KD, prdc.PRDC, copies.Copies])
def test_numbers_of_real_pictures_are_checked_before_any_is_drawn(make):
    def check(metric, **real):
        data = SimpleNamespace(dtype="uint8", channels=1)
        numbers = {"has_network": True, "real": real}
        check_needs({metric.passport()["name"]: metric}, Fake(), data, 100, **numbers)

    metric = make()
    check(metric, train=metric.least)
    check(metric, train=100, held_out=metric.least)
    with pytest.raises(InputError, match=f"at least {metric.least} held_out pictures.* 2"):
        check(metric, train=100, held_out=2)
    if make is not copies.Copies:
        check(make(reference="train"), train=100, held_out=2)
        with pytest.raises(InputError, match=r"held_out pictures.* 0\..*reference=train"):
            check(make(reference="held_out"), train=100)
