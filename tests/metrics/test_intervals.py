"""Every score lies in its interval, for features of any distribution."""

from dataclasses import replace

import pytest
import torch
from support.material import Fake, pictures

from ddpm.metrics import copies, fd, inception_score, kd, prdc
from ddpm.metrics.base import Material, Pictures

METRICS = {
    "fd": lambda: fd.FD(groups=5),
    "kd": kd.KD,
    "prdc": lambda: prdc.PRDC(k=3),
    "is": lambda: inception_score.InceptionScore(splits=4),
    "copies": copies.Copies,
}
SETS = {  # transformations of standard normal features (n, d)
    "normal": lambda x: x,
    "tiny": lambda x: 1e-6 * x,
    "large and far": lambda x: 1e3 * x + 1e4,
    "one point": torch.zeros_like,
    "a line": lambda x: x[:, :1].expand_as(x).contiguous(),
    "twice each": lambda x: x[: (len(x) + 1) // 2].repeat(2, 1)[: len(x)],
    "heavy tails": lambda x: x**5,
}


@pytest.mark.parametrize("name", METRICS)
def test_a_score_lies_in_its_interval(name):
    """The reference, or samples as well, are transformed; and a set is compared with itself."""
    sets = {"normal": SETS["normal"]} if name == "copies" else SETS  # it compares pixels
    for kind, (make, seed) in enumerate((make, seed) for make in sets.values() for seed in (0, 1)):
        for n, d in ((10, 2), (13, 20)):
            real = [pictures(30, d, 10 * kind + i) for i in (1, 2)]
            drawn = pictures(n, d, 10 * kind + seed)
            made = replace(drawn, features=make(drawn.features))
            alike = [replace(one, features=make(one.features)) for one in real]
            own = Pictures(real[0].images[:n], real[0].features[:n])
            for samples, (train, held_out) in (
                *((made, alike), (drawn, alike)),
                (own, [own, real[1]]),
            ):
                material = Material(train, held_out, samples, Fake(num_classes=d), seed=seed)
                _assert_inside(METRICS[name]().measure(material), (name, kind, n, d))


def _assert_inside(scores, case):
    assert scores, case
    for score in scores:
        assert torch.isfinite(torch.tensor(score.value)), (case, score)
        for bound, sign in ((score.low, 1), (score.high, -1)):
            if bound is not None:
                assert sign * bound <= sign * score.value, (case, score)


def test_negative_extrapolation_keeps_a_symmetric_interval():
    """For samples equal to the reference the intercept is negative about half of the time."""
    values = []
    for seed in range(6):
        x = pictures(200, 2, seed)
        material = Material(x, None, Pictures(x.images, x.features), Fake(), seed=seed)
        score = fd.FD().measure(material)[1]
        assert score.name == "fd_inf_fake"
        assert score.high - score.value == pytest.approx(score.value - score.low)
        values.append(score.value)
    assert min(values) < 0
