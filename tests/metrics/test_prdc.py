"""Precision, recall, density, coverage: expectations, limits, and two other libraries."""

import math

import pytest
import torch
from support.material import material

from ddpm.errors import InputError
from ddpm.metrics import prdc
from ddpm.metrics.prdc import NAMES

OPTIONS = {"k": 5, "inclusive": True, "balanced": True, "reference": "both", "floor": True}


def normal(n, d=8, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("k", "n"), [(3, 500), (5, 1000)])
def test_scores_of_equal_distributions_match_their_expectation(k, n):
    results = [prdc.prdc(normal(n, seed=i), normal(n, seed=100 + i), k) for i in range(4)]
    precision, recall, density, coverage = torch.tensor([r.values for r in results]).mean(0)
    expected = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    assert coverage == pytest.approx(expected, abs=0.02)
    assert density == pytest.approx(1, abs=0.05)
    assert precision == pytest.approx(float(recall), abs=0.03)


def test_scores_of_disjoint_equal_and_collapsed_sets():
    x, far = normal(50), normal(60, seed=1) + 1000
    assert prdc.prdc(far, x, 5).values == (0, 0, 0, 0)
    assert prdc.prdc(x, x, 5).values == pytest.approx((1, 1, 6 / 5, 1), abs=1e-12)
    assert prdc.prdc(x.flip(0), x, 5).values == pytest.approx((1, 1, 6 / 5, 1), abs=1e-12)
    point = x.mean(0).expand(40, -1)
    precision, recall, density, coverage = prdc.prdc(point, normal(500), 5).values
    assert (precision, recall) == (1, 0)
    assert density > 2
    assert 0 < coverage < 0.5


def test_inclusive_balls_of_radius_0_contain_duplicates():
    x = torch.cat([torch.full((10, 8), 3.0), normal(20)])
    assert prdc.prdc(x, x, 5).values[:2] == (1, 1)
    precision, recall, _, _ = prdc.prdc(x[:10], x, 5, inclusive=False).values
    assert (precision, recall) == (0, 0)


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("n", [200, 431])
def test_scores_equal_the_prdc_package(k, n):
    reference = pytest.importorskip("prdc")
    x, y = 0.9 * normal(n).double() + 0.1, normal(300, seed=1).double()
    theirs = reference.compute_prdc(y.numpy(), x.numpy(), nearest_k=k)
    ours = prdc.prdc(x, y, k, inclusive=False).values
    assert ours == pytest.approx([theirs[name] for name in NAMES], abs=1e-12)


def test_precision_and_recall_equal_torch_fidelity():
    reference = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = 0.9 * normal(200).double() + 0.1, normal(300, seed=1).double()
    options = {"prc_neighborhood": 3, "prc_batch_size": 1000, "verbose": False}
    theirs = reference.prc_features_to_metric(x, y, save_cpu_ram=False, **options)
    precision, recall, _, _ = prdc.prdc(x, y, 3).values
    assert precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert recall == pytest.approx(theirs["recall"], abs=1e-6)


def test_errors_equal_a_jackknife_over_groups():
    x, y = normal(100), normal(120, seed=1)
    errors = prdc.prdc(x, y, 3, seed=7).errors
    groups = prdc._groups(100, 3, 7)
    without = []
    for group in groups:
        keep = torch.ones(100, dtype=torch.bool)
        keep[group] = False
        without.append(prdc.prdc(x[keep], y, 3, seed=None).values)
    assert len(groups) == 10
    for i in (1, 3):
        values = torch.tensor([v[i] for v in without]).double()
        expected = (0.9 * ((values - values.mean()) ** 2).sum()).sqrt()
        assert errors[i] == pytest.approx(float(expected), abs=1e-6)


def test_errors_match_the_spread_over_repeated_draws():
    y = normal(300, seed=999)
    results = [prdc.prdc(0.9 * normal(300, seed=i), y, 5) for i in range(30)]
    spread = torch.tensor([r.values for r in results]).std(0)
    errors = torch.tensor([r.errors for r in results]).mean(0)
    assert (errors / spread).tolist() == pytest.approx([1, 1, 1, 1], abs=0.6)


def test_scores_do_not_depend_on_the_block_size(monkeypatch):
    x, y = normal(100), normal(90, seed=1)
    whole = prdc.prdc(x, y, 3)
    monkeypatch.setattr(prdc.sets.blocks, "__defaults__", (700,))
    assert prdc.prdc(x, y, 3) == whole


def test_scores_have_names_references_intervals_and_floor():
    scores = prdc.PRDC(**OPTIONS).measure(material())
    assert [s.name for s in scores] == [f"{name}_fake" for name in NAMES] * 2
    assert [s.reference for s in scores] == ["train"] * 4 + ["held_out"] * 4
    for score in scores:
        assert score.low <= score.value <= score.high
        assert score.floor == pytest.approx(score.value, abs=0.3)
        assert (score.n, score.better) == (100, "higher")
    fewer = prdc.PRDC(**OPTIONS).measure(material(n=100, held_out=50))
    assert [s.floor is None for s in fewer] == [True] * 4 + [False] * 4


def test_a_share_of_all_or_no_pictures_has_an_interval():
    """The jackknife's error is 0 there: Wilson's interval takes its place."""
    y = normal(200)
    nothing = prdc.prdc(y + 1000, y, 5)
    for i, name in enumerate(NAMES):
        assert (nothing.values[i], nothing.errors[i]) == (0, 0)
        if name != "density":
            top = prdc._interval(name, 1.0, 0.0, 200)
            assert top == {"low": pytest.approx(200 / (200 + 1.96**2), abs=1e-4), "high": 1.0}
            bottom = prdc._interval(name, 0.0, 0.0, 200)
            assert bottom == {"low": 0.0, "high": pytest.approx(1 - top["low"])}


def test_balanced_uses_as_many_real_images_as_samples():
    """Else coverage shrinks with a larger reference."""
    given = material(n=50, train=1000)
    balanced, everything = (
        prdc.PRDC(**OPTIONS | {"balanced": balanced}).measure(given)[3].value
        for balanced in (True, False)
    )
    assert balanced > 0.85
    assert everything < 0.5


def test_too_few_samples_and_invalid_k_are_refused():
    with pytest.raises(InputError, match="at least 6 samples, got 5"):
        prdc.PRDC(**OPTIONS).measure(material(n=5))
    scores = prdc.PRDC(**OPTIONS).measure(material(n=6))
    assert [s.low is None for s in scores[:4]] == [False, True, False, True]
