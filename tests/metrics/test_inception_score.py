"""Inception Score: limits, torch-fidelity's number, names."""

import pytest
import torch
from support.material import Fake, material

from ddpm.errors import InputError
from ddpm.metrics.inception_score import InceptionScore, inception_score


def test_score_of_certain_and_uniform_predictions():
    certain = torch.eye(10).repeat(7, 1).log()
    assert inception_score(certain) == pytest.approx(10, rel=1e-12)
    assert inception_score(certain[:1].repeat(20, 1)) == pytest.approx(1, rel=1e-12)
    assert inception_score(torch.full((20, 10), 0.1).log()) == pytest.approx(1, rel=1e-12)


def test_score_equals_torch_fidelity():
    reference = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 2 * torch.randn(100, 10, generator=torch.Generator().manual_seed(0)).double()
    theirs = reference.isc_features_to_metric(logits, splits=1, shuffle=False)
    ours = inception_score(logits.log_softmax(1))
    assert ours == pytest.approx(theirs["inception_score_mean"], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "resize", "expected"),
    [
        ("inception", "legacy", "is"),
        ("inception", "clean", "classifier_score_inception"),
        ("digits", "none", "classifier_score_digits"),
    ],
)
def test_scores_have_name_interval_and_floor(name, resize, expected):
    given = material(features=Fake(name, resize, num_classes=4))
    (score,) = InceptionScore(splits=10, floor=True).measure(given)
    assert score.name == expected
    assert 1 < score.low < score.value < score.high < 4
    assert score.floor == pytest.approx(score.value, abs=0.2)
    assert [score] == InceptionScore(splits=10, floor=True).measure(given)
    (single,) = InceptionScore(splits=1, floor=False).measure(given)
    assert (single.low, single.floor) == (None, None)
    assert single.value > score.value  # fewer images per split lower the score


def test_missing_classes_and_too_few_samples_are_refused():
    metric = InceptionScore(splits=10, floor=True)
    with pytest.raises(InputError, match="fake has none"):
        metric.measure(material())
    with pytest.raises(InputError, match="at least 20 samples, got 19"):
        metric.measure(material(n=19, features=Fake(num_classes=4)))
    assert metric.measure(material(held_out=99, features=Fake(num_classes=4)))[0].floor is None
