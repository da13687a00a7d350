"""The Frechet distance: closed forms, its bias, its error, and torch-fidelity's number."""

import pytest
import torch
from support.material import Fake, material

from ddpm.errors import InputError
from ddpm.metrics import fd

OPTIONS = {"reference": "both", "floor": True, "infinity": True, "groups": 20}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly(mean, root, n=40, seed=0):
    """n rows (n, d) with exactly this mean and the covariance root.T @ root."""
    x = normal(n, len(mean), seed=seed)
    x = torch.linalg.qr(x - x.mean(0))[0] * (n - 1) ** 0.5
    return x @ root + mean


def symmetric(d, seed):
    a = normal(d, d, seed=seed)
    return a @ a.T / d + 0.5 * torch.eye(d, dtype=torch.float64)


@pytest.mark.parametrize("n", [5, 40], ids=["fewer than features", "more"])
def test_distance_to_shifted_and_scaled_features_has_the_closed_form(n):
    """x -> c x + m: |m + (c - 1) mean|^2 + (c - 1)^2 tr S, whatever the rank of S."""
    x, m = normal(n, 8), normal(8, seed=3)
    other = 1.5 * x + m
    centred = x - x.mean(0)
    expected = ((m + 0.5 * x.mean(0)) ** 2).sum() + 0.25 * (centred**2).sum() / (n - 1)
    assert fd.frechet(x, other) == pytest.approx(float(expected), rel=1e-7 if n < 8 else 1e-12)


def test_distance_for_commuting_covariances():
    a, b = normal(8).abs() + 0.1, normal(8, seed=1).abs() + 0.1
    m_1, m_2 = normal(8, seed=2), normal(8, seed=3)
    x, y = exactly(m_1, a.sqrt().diag()), exactly(m_2, b.sqrt().diag(), seed=9)
    expected = ((m_1 - m_2) ** 2).sum() + ((a.sqrt() - b.sqrt()) ** 2).sum()
    assert fd.frechet(x, y) == pytest.approx(float(expected), rel=1e-12)


def test_distance_for_noncommuting_covariances():
    """S_2 = A S_1 A with A symmetric positive: the trace part is tr (I - A) S_1 (I - A)."""
    root, A = symmetric(8, 1), symmetric(8, 2)
    zero = torch.zeros(8, dtype=torch.float64)
    x = exactly(zero, root)
    rest = torch.eye(8, dtype=torch.float64) - A
    expected = (rest @ root @ root @ rest).trace()
    assert fd.frechet(x, x @ A) == pytest.approx(float(expected), rel=1e-12)
    assert fd.frechet(x @ A, x) == pytest.approx(float(expected), rel=1e-12)


def test_feature_and_covariance_forms_agree():
    x, y = normal(60, 16), 1.3 * normal(50, 16, seed=1) + 0.2
    overlap = torch.linalg.svdvals((x - x.mean(0)) @ (y - y.mean(0)).T).sum() / (59 * 49) ** 0.5
    apart, traces = ((x.mean(0) - y.mean(0)) ** 2).sum(), x.var(0).sum() + y.var(0).sum()
    assert fd.frechet(x, y) == pytest.approx(float(apart + traces - 2 * overlap), rel=1e-10)
    few = x[:10]
    covariance = fd.from_moments(fd.Moments.of(few), fd.Gaussian.of(y))
    assert fd.frechet(few, y) == pytest.approx(covariance, rel=1e-7)
    assert fd.frechet(few, y) == pytest.approx(fd.frechet(y, few), rel=1e-7)


@pytest.mark.parametrize("n", [3, 10, 30])
def test_distance_of_a_set_to_itself_is_0(n):
    x = normal(n, 10)
    assert fd.frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert fd.frechet(x, x.flip(0)) == pytest.approx(0, abs=1e-6)


def test_constant_zero_features_do_not_change_the_distance():
    x, y = normal(50, 8), normal(60, 8, seed=1)
    x[:, 5:] = y[:, 5:] = 0
    assert fd.frechet(x, y) == pytest.approx(fd.frechet(x[:, :5], y[:, :5]), rel=1e-6)


def test_removing_a_part_gives_the_moments_of_the_rest():
    x = normal(30, 4) + 3
    rest, part = fd.Moments.of(x).without(fd.Moments.of(x[:7])), fd.Moments.of(x[7:])
    assert rest.count == 23
    torch.testing.assert_close(rest.mean, part.mean)
    torch.testing.assert_close(rest.scatter, part.scatter)


def test_bias_for_n_samples_has_the_closed_form():
    """d/n + (d^2 + d)/4n for N(0, I) against itself."""
    d, n = 16, 1000
    exact = fd.Gaussian(torch.zeros(d).double(), torch.eye(d).double())
    values = [fd.to_gaussian(normal(n, d, seed=i), exact) for i in range(40)]
    mean = sum(values) / len(values)
    assert mean == pytest.approx(d / n + (d * d + d) / (4 * n), rel=0.05)


def test_extrapolation_removes_the_bias_and_errors_match_the_spread():
    d, n = 32, 1000
    exact = fd.Gaussian(torch.zeros(d).double(), torch.eye(d).double())
    draws = [1.2 * normal(n, d, seed=i) for i in range(40)]
    truth = d * 0.2**2
    at_n = torch.tensor([fd.to_gaussian(x, exact) for x in draws])
    at_infinity = torch.tensor([fd.extrapolate(x, exact, i)[0] for i, x in enumerate(draws)])
    assert at_n.mean() > 1.1 * truth
    assert at_infinity.mean() == pytest.approx(truth, rel=0.03)
    errors = torch.tensor([fd.error(x, exact, 20, 0) for x in draws])
    assert errors.mean() == pytest.approx(float(at_n.std()), rel=0.5)


@pytest.mark.parametrize("n", [300, 40])
def test_distance_equals_torch_fidelity(n):
    reference = pytest.importorskip("torch_fidelity.metric_fid")
    x, y = normal(n, 64), 1.1 * normal(400, 64, seed=1) ** 2
    statistics = map(reference.fid_features_to_statistics, (x, y))
    theirs = reference.fid_statistics_to_metric(*statistics, verbose=False)
    assert fd.frechet(x, y) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_scores_have_names_references_intervals_and_floor():
    scores = fd.FD(**OPTIONS).measure(material(n=100, train=300, held_out=200, d=4))
    assert [(s.name, s.reference) for s in scores] == [
        ("fd_fake", "train"),
        ("fd_fake", "held_out"),
        ("fd_inf_fake", "train"),
        ("fd_inf_fake", "held_out"),
    ]
    for score in scores:
        assert score.low <= score.value <= score.high or score.value < 0
        assert (score.n, score.better) == (100, "lower")
    assert 0 < scores[0].floor < 0.5
    assert scores == fd.FD(**OPTIONS).measure(material(n=100, train=300, held_out=200, d=4))


def test_floor_needs_as_many_images_as_samples():
    train, held_out = fd.FD(**OPTIONS).measure(material(n=100, train=300, held_out=50, d=40))
    assert train.floor is None
    assert held_out.floor is not None


def test_reference_set_can_be_chosen():
    for which in ("train", "held_out"):
        scores = fd.FD(**OPTIONS | {"reference": which}).measure(material())
        assert {score.reference for score in scores} == {which}
    scores = fd.FD(**OPTIONS).measure(material(held_out=None))
    assert {score.reference for score in scores} == {"train"}
    with pytest.raises(InputError, match="no held-out"):
        fd.FD(**OPTIONS | {"reference": "held_out"}).measure(material(held_out=None))


@pytest.mark.parametrize(
    ("name", "resize", "expected"),
    [
        ("inception", "legacy", "fid"),
        ("inception", "clean", "fd_inception"),
        ("mnist", "legacy", "fd_mnist"),
    ],
)
def test_fid_is_the_name_for_inception_with_the_legacy_resize(name, resize, expected):
    features = Fake(name, resize)
    assert fd.FD(**OPTIONS).measure(material(features=features))[0].name == expected


def test_fewer_samples_than_features_warn_once(caplog):
    metric = fd.FD(**OPTIONS)
    for _ in range(2):
        metric.measure(material(n=12, d=20))
    assert [r.getMessage()[:40] for r in caplog.records] == [
        "metric=fd: 12 samples for 20 features: t"
    ]


def test_invalid_inputs_and_options_are_refused():
    metric = fd.FD(**OPTIONS)
    with pytest.raises(InputError, match=r"at least 10 samples, got 1\. .*job.num_samples"):
        metric.measure(material(n=1))
    with pytest.raises(InputError, match="at least 10 training pictures, got 4"):
        metric.measure(material(train=4))
    with pytest.raises(InputError, match="16 features a picture, real pictures 4"):
        metric.measure(material(d=16, real_d=4))
    with pytest.raises(InputError, match=r"must be \(n, d\), got \(100, 1, 4, 4\)"):
        metric.measure(material(sample_features=torch.zeros(100, 1, 4, 4)))
    with pytest.raises(InputError, match="NaN"):
        metric.measure(material(sample_features=torch.full((100, 4), torch.nan)))
    with pytest.raises(InputError, match="needs samples"):
        metric.measure(material(n=None))
