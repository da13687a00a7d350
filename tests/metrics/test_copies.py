"""Copies: the search is exact and the threshold calibrated."""

import resource
from types import SimpleNamespace

import pytest
import torch
from support.material import material

from ddpm.errors import InputError
from ddpm.evaluation.needs import check_needs
from ddpm.features.pixels import Pixels
from ddpm.metrics import nearest
from ddpm.metrics.base import Material, Pictures
from ddpm.metrics.copies import Copies
from ddpm.metrics.nearest import Index

OPTIONS = {"quantile": 0.01, "flips": True, "shifts": 1, "gallery": 4}


def smooth(n, seed, size=12, channels=1):
    """Random pictures with a few blurred spots, uint8 (n, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")
    return (fine * 255).clamp(0, 255).round().to(torch.uint8)


def by_definition(queries, images, shifts, flips):
    """Root mean square difference to each image, the least over the versions: (n, N)."""
    size = images.shape[-1] - 2 * shifts
    centre = images[..., shifts : shifts + size, shifts : shifts + size].double()
    found = []
    for picture in [queries, queries.flip(-1)][: 1 + flips]:
        for i in range(2 * shifts + 1):
            for j in range(2 * shifts + 1):
                part = picture[..., i : i + size, j : j + size].double()
                found.append(((part[:, None] - centre) ** 2).mean((2, 3, 4)).sqrt())
    return torch.stack(found).amin(0)


@pytest.mark.parametrize(
    ("flips", "shifts", "channels"), [(False, 0, 1), (True, 0, 3), (False, 1, 3), (True, 2, 1)]
)
def test_nearest_neighbour_search_is_exact(flips, shifts, channels, monkeypatch):
    monkeypatch.setattr(nearest, "ROWS", 100)
    monkeypatch.setattr(nearest, "FIRST", 3)
    monkeypatch.setattr(nearest, "DIRECTIONS", 5)
    monkeypatch.setattr(nearest, "NUMBERS", 5000)
    images, queries = smooth(330, 0, channels=channels), smooth(20, 1, channels=channels)
    found = Index.of(images, shifts, flips).search(queries)
    distances = by_definition(queries, images, shifts, flips)
    expected, rows = distances.sort(1)
    torch.testing.assert_close(found.first, expected[:, 0], rtol=1e-12, atol=0)
    torch.testing.assert_close(found.second, expected[:, 1], rtol=1e-12, atol=0)
    assert found.row.equal(rows[:, 0])


@pytest.mark.parametrize("directions", [5, 96])
def test_lower_bounds_do_not_exceed_the_distances(directions, monkeypatch):
    """Also with a complete basis, where they are equal up to rounding."""
    monkeypatch.setattr(nearest, "DIRECTIONS", directions)
    images, queries = smooth(1000, 0), smooth(20, 1)
    index = Index.of(images, 1, True)
    bounds = index._bounds(nearest.versions(queries, 1, True))
    squares = by_definition(queries, images, 1, True) ** 2 * 100
    assert (bounds <= squares).all()
    if directions == 96:
        assert (squares - bounds).max() < 0.01 * squares.max()
    assert index.search(queries).second.isfinite().all()


def test_search_can_skip_the_row_of_the_query():
    images = smooth(100, 0)
    chosen = torch.tensor([5, 50, 99])
    found = Index.of(images, 0, False).search(images[chosen], skip=chosen)
    distances = by_definition(images[chosen], images, 0, False)
    distances[torch.arange(3), chosen] = torch.inf
    torch.testing.assert_close(found.first, distances.amin(1))


def test_search_computes_few_full_distances(monkeypatch):
    compared, squares = [], Index._squares
    monkeypatch.setattr(
        Index, "_squares", lambda self, v, r: compared.append(len(r)) or squares(self, v, r)
    )
    Index.of(smooth(3000, 0), 1, True).search(smooth(20, 1))
    assert sum(compared) / 20 < 100


@pytest.fixture(scope="module")
def real():
    pictures = smooth(4000, 0)
    return Pictures(pictures[:2500]), Pictures(pictures[2500:3500]), pictures[3500:]


TRANSFORMS = {
    "exact": lambda x: x,
    "two levels": lambda x: (x.int() + torch.randint(-2, 3, x.shape)).clamp(0, 255).byte(),
    "mirrored": lambda x: x.flip(-1),
    "shifted": lambda x: torch.roll(x, (1, -1), (2, 3)),
    "mirrored and shifted": lambda x: torch.roll(x.flip(-1), 1, 2),
}


@pytest.fixture(scope="module")
def metric():
    return Copies(**OPTIONS)


@pytest.mark.parametrize("change", TRANSFORMS.values(), ids=list(TRANSFORMS))
def test_transformed_copies_are_found(metric, real, change):
    train, held_out, _ = real
    samples = Pictures(change(train.images[:100]))
    copied, by_ratio, distance = metric.measure(Material(train, held_out, samples))
    assert (copied.name, copied.value, copied.reference) == ("copied", 1, "train")
    assert (by_ratio.name, distance.name) == ("copied_by_ratio", "nearest_train")
    assert by_ratio.value > 0.9
    assert distance.value < 2


def test_unseen_images_do_not_count_as_copies(metric, real):
    train, held_out, fresh = real
    copied, by_ratio, distance = metric.measure(Material(train, held_out, Pictures(fresh)))
    assert copied.value < 0.03
    assert copied.low < 0.02
    assert copied.floor == pytest.approx(0.01, abs=0.001)
    assert by_ratio.value == by_ratio.floor == 0
    assert distance.low < distance.floor < distance.high
    planted = torch.cat([fresh[:450], train.images[:50]])
    copied = metric.measure(Material(train, held_out, Pictures(planted)))[0]
    assert 0.1 <= copied.value < 0.13


def test_gallery_pairs_are_sorted_by_distance_and_drawn(metric, real):
    train, held_out, fresh = real
    samples = Pictures(torch.cat([fresh[:50], train.images[70:72].flip(-1)]))
    given = Material(train, held_out, samples)
    pairs = metric.pairs(given)
    assert [(p.sample, p.train, p.distance, p.copied) for p in pairs[:2]] == [
        (50, 70, 0, True),
        (51, 71, 0, True),
    ]
    assert [p.distance for p in pairs] == sorted(p.distance for p in pairs)
    assert len(pairs) == 4
    assert Copies(**OPTIONS).pictures() == {}
    metric.measure(given)
    grid = metric.pictures()["nearest"]
    assert grid.shape == (1, 3 * 13 + 1, 4 * 13 + 1)
    assert grid[:, 1:13, 1:13].equal(samples.images[50])
    assert grid[:, 14:26, 1:13].equal(train.images[70])
    assert grid[:, 27:39, 14:26].equal(held_out.images[pairs[1].held_out])
    for pair in pairs:
        distances = by_definition(samples.images[[pair.sample]], held_out.images, 1, True)[0]
        assert pair.held_out == distances.argmin()
        assert pair.held_out_distance == pytest.approx(float(distances.min()))


def test_threshold_comes_from_training_images_without_held_out_ones(metric, real):
    train, _, fresh = real
    copied = metric.measure(Material(train, None, Pictures(fresh)))[0]
    assert copied.value < 0.03
    given = Material(train, None, Pictures(train.images[:50]))
    assert metric.measure(given)[0].value == 1
    assert metric.pairs(given)[0].held_out is None


@pytest.mark.slow
def test_calibration_search_is_done_once(real, monkeypatch):
    train, held_out, fresh = real
    metric, searched = Copies(**OPTIONS), []
    search = Index._search
    monkeypatch.setattr(
        Index, "_search", lambda self, q, s: searched.append(len(q)) or search(self, q, s)
    )
    for i in range(3):
        metric.measure(Material(train, held_out, Pictures(fresh[i * 20 : i * 20 + 20])))
    assert sum(searched) == 1000 + 60


@pytest.mark.slow
def test_memory_of_the_search_is_bounded(metric):
    images, queries = smooth(20_000, 0), smooth(200, 1)
    Index.of(images[:100], 1, True).search(queries[:5])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Index.of(images, 1, True).search(queries)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


def test_invalid_inputs_and_options_are_refused():
    metric, given = Copies(**OPTIONS), material()
    with pytest.raises(InputError, match=r"sampled pictures of 8x8x1 .* of 4x4x1"):
        metric.measure(Material(given.train, None, Pictures(smooth(9, 0, size=8))))
    with pytest.raises(InputError, match=r"must be uint8 \(n, C, H, W\), got torch.float32"):
        metric.measure(Material(given.train, None, Pictures(torch.zeros(9, 1, 4, 4))))
    with pytest.raises(InputError, match=r"metric.copies.shifts=2.*at most 1"):
        Copies(**OPTIONS | {"shifts": 2}).measure(given)
    with pytest.raises(InputError, match="at least 3 training pictures, got 2"):
        metric.measure(material(train=2))


def test_too_few_samples_are_refused_before_any_is_drawn():
    data = SimpleNamespace(dtype="uint8", channels=1)
    sides = {"has_network": False, "real": {"train": 100, "held_out": 100}}
    with pytest.raises(InputError, match=r"metric=copies: needs at least 3 samples.* 2"):
        check_needs({"copies": Copies(**OPTIONS)}, Pixels(), data, 2, **sides)
    check_needs({"copies": Copies(**OPTIONS)}, Pixels(), data, 3, **sides)
    with pytest.raises(InputError, match="at least 3 samples, got 2"):
        Copies(**OPTIONS).measure(material(n=2))
