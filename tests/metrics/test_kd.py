"""The kernel distance: closed forms, its error, and torch-fidelity's number."""

import pytest
import torch
from support.material import material

from ddpm.errors import InputError
from ddpm.metrics import kd

OPTIONS = {"reference": "both", "floor": True, "rescale": True}


def draws(count, n, d, shift=0.0):
    for i in range(count):
        x = torch.randn(2, n, d, generator=torch.Generator().manual_seed(i))
        yield x[0], x[1] + shift


def by_definition(x, y):
    """The mean over all pairs of different pictures, one by one."""

    def k(a, b):
        return float((a.double() @ b.double() / len(a) + 1) ** 3)

    def own(z):
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(k(z[i], z[j]) for i, j in pairs) / len(pairs)

    return own(x) + own(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


def test_distance_and_error_equal_sum_over_pairs_and_jackknife():
    x, y = torch.randn(7, 3), torch.randn(9, 3) + 0.5
    value, error = kd.distance(x, y)
    assert value == pytest.approx(by_definition(x, y), rel=1e-10)
    without = [by_definition(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(len(x))]
    mean = sum(without) / 7
    expected = (6 / 7 * sum((v - mean) ** 2 for v in without)) ** 0.5
    assert error == pytest.approx(expected, rel=1e-8)


def test_blockwise_means_equal_those_of_the_full_kernel():
    x, y = torch.randn(2500, 4), torch.randn(2100, 4)
    rows = kd.kernel(x, x, 1.0)
    expected = (rows.sum(1) - rows.diagonal()) / 2499
    torch.testing.assert_close(kd.means_of_others(x, 1.0), expected)
    torch.testing.assert_close(kd.row_means(x, y, 1.0), kd.kernel(x, y, 1.0).mean(1))


def test_distance_of_equal_distributions_is_unbiased():
    values = torch.tensor([kd.distance(x, y)[0] for x, y in draws(100, 200, 16)])
    assert abs(values.mean()) < 3 * values.std() / 10
    assert 0.3 < (values < 0).double().mean() < 0.7


def test_distance_of_shifted_normals_has_the_closed_form():
    """N(0, I) and N(m, I) with mu = |m|^2."""
    d, shift = 16, 0.3
    mu = d * shift**2
    within = (1 + mu / d) ** 3 + 3 * (1 + mu / d) * (2 * mu + d) / d**2 + 6 * mu / d**3
    expected = (1 + 3 / d) + within - 2 * (1 + 3 * (mu + d) / d**2)
    results = torch.tensor([kd.distance(y, x) for x, y in draws(60, 200, d, shift)])
    values, errors = results.double().T
    assert abs(values.mean() - expected) < 3 * values.std() / 60**0.5
    assert errors.mean() < values.std()  # which holds the reference's error too


def test_error_matches_the_spread_over_samples():
    real = torch.randn(500, 8, generator=torch.Generator().manual_seed(99))
    results = torch.tensor([kd.distance(y, real) for _, y in draws(60, 100, 8, 0.4)])
    values, errors = results.double().T
    assert errors.mean() == pytest.approx(float(values.std()), rel=0.3)


def test_distance_equals_torch_fidelity():
    reference = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = next(draws(1, 300, 64, 0.2))
    x, y = x.double(), y.double()
    options = {"kid_subsets": 1, "kid_subset_size": 300, "verbose": False}
    theirs = reference.kid_features_to_metric(x, y, **options)
    ours = kd.distance(x, y)[0]
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)


def test_rescaled_distance_ignores_the_scale_of_features():
    given = material()
    scores = kd.KD(**OPTIONS).measure(given)
    for pictures in (given.train, given.held_out, given.samples):
        pictures.features.mul_(100)
    for a, b in zip(scores, kd.KD(**OPTIONS).measure(given), strict=True):
        assert (a.value, a.floor) == pytest.approx((b.value, b.floor), rel=1e-4)
    raw = kd.KD(**OPTIONS | {"rescale": False})
    assert abs(raw.measure(given)[0].value) > 1e6 * abs(scores[0].value)
    assert raw.passport()["scale"] == "none"


def test_scores_have_intervals_and_reference_terms_are_cached(monkeypatch):
    metric, given = kd.KD(**OPTIONS), material(n=100, held_out=50)
    first = metric.measure(given)
    assert [(s.name, s.reference) for s in first] == [("kd_fake", "train"), ("kd_fake", "held_out")]
    for score in first:
        assert score.low < score.value < score.high
        assert abs(score.floor) < 0.2
    sizes, own = [], kd.means_of_others
    monkeypatch.setattr(
        kd, "means_of_others", lambda x, scale: sizes.append(len(x)) or own(x, scale)
    )
    assert metric.measure(given) == first
    assert sizes == [100, 100]  # samples alone
    with pytest.raises(InputError, match="at least 3 samples, got 2"):
        metric.measure(material(n=2))
