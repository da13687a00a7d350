"""EDM's augmentation: the embedding describes each transformation, and 0 means none."""

import math

import pytest
import torch

from ddpm.augment import edm
from ddpm.augment.edm import EDM
from ddpm.errors import InputError
from ddpm.models.convnet import ConvNet

NONE = torch.zeros(1)


def drawn(augment, x_0, seed=0, rows=None, batch=None):
    generator = torch.Generator().manual_seed(seed)
    return augment(x_0, generator, rows or slice(len(x_0)), batch or len(x_0))


def pictures(n, channels=3, height=16, width=16):
    return (
        torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    )


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_image_changes_exactly_when_its_embedding_is_nonzero(color, channels):
    x_0 = pictures(400, channels, 12, 8)
    seen, embedding = drawn(EDM(probability=0.05, color=color), x_0)
    assert embedding.shape == (400, 15)
    same = (seen == x_0).flatten(1).all(1)
    unchanged = (embedding == 0).all(1)
    assert torch.equal(same, unchanged)
    assert 50 < unchanged.sum() < 200
    assert torch.isfinite(seen).all()


def test_probability_0_changes_nothing():
    x_0 = pictures(16)
    seen, embedding = drawn(EDM(probability=0, color=True), x_0)
    assert torch.equal(seen, x_0)
    assert not embedding.any()


def test_part_of_a_batch_is_augmented_as_in_the_whole_batch():
    x_0, augment = pictures(8), EDM(probability=0.5, color=True)
    whole, embedding = drawn(augment, x_0)
    part, embedding_of_part = drawn(augment, x_0[3:6], rows=slice(3, 6), batch=8)
    assert torch.equal(embedding[3:6], embedding_of_part)
    assert torch.allclose(whole[3:6], part, atol=1e-6)


def test_each_transformation_occurs_with_its_probability():
    _, embedding = drawn(EDM(probability=0.12, color=True), pictures(4000, 1, 2, 2))
    rates = (embedding != 0).float().mean(0)
    assert rates[0] == pytest.approx(0.5, abs=0.03)  # mirrored: always a coin
    for column, rate in {1: 0.06, 2: 0.12, 4: 0.12, 5: 0.12, 7: 0.12, 9: 0.12, 11: 0.06}.items():
        assert rates[column] == pytest.approx(rate, abs=0.025)


def test_rotation_by_90_degrees_is_exact():
    x_0 = pictures(1)
    turned = edm.warp(x_0, NONE, NONE + math.pi / 2, NONE, NONE, torch.zeros(1, 2))
    assert torch.allclose(turned, x_0.rot90(1, (-2, -1)), atol=1e-4)


def test_translation_is_in_eighths_of_the_side():
    x_0 = pictures(1, 1, 16, 32)
    moved = edm.warp(x_0, NONE, NONE, NONE, NONE, torch.tensor([[1.0, -1.0]]))
    assert torch.allclose(moved[..., :-2, 4:], x_0[..., 2:, :-4], atol=1e-4)


def test_a_scaled_picture_is_larger_and_a_stretched_one_wider():
    square = torch.zeros(1, 1, 64, 64)
    square[..., 24:40, 24:40] = 1
    five = NONE + 5  # doubles
    assert edm.warp(square, five, NONE, NONE, NONE, torch.zeros(1, 2)).sum() == pytest.approx(
        1024, rel=0.02
    )
    wide = edm.warp(square, NONE, NONE, five, NONE, torch.zeros(1, 2))[0, 0]
    assert wide[32].sum() == pytest.approx(32, rel=0.05)
    assert wide[16:48, 32].sum() == pytest.approx(8, rel=0.05)


def test_hue_rotates_around_the_grey_axis():
    x_0 = pictures(1)
    third = NONE + 2 * math.pi / 3  # red to green to blue
    assert torch.allclose(
        edm.recolor(x_0, NONE, NONE, NONE, third, NONE), x_0.roll(1, dims=1), atol=1e-5
    )
    grey = x_0.mean(1, keepdim=True).expand_as(x_0)
    for name in ("hue", "saturation"):
        values = dict.fromkeys(("brightness", "contrast", "luma", "hue", "saturation"), NONE)
        seen = edm.recolor(grey, **(values | {name: NONE + 1}))
        assert torch.allclose(seen, grey, atol=1e-5)
    inverted = edm.recolor(x_0, NONE, NONE, NONE + 1, NONE, NONE)
    assert torch.allclose(inverted.mean(1), -x_0.mean(1), atol=1e-5)
    assert torch.allclose(edm.recolor(x_0, NONE + 1, NONE, NONE, NONE, NONE), x_0 + 0.2, atol=1e-5)


def test_zero_augmentation_embedding_equals_no_augmentation():
    """The embedding starts at 0 and has no bias."""
    x, t = pictures(2), torch.tensor([1, 5])
    sizes = {"channels": 3, "out_channels": 3, "image_size": 16, "num_classes": None, "width": 8}
    torch.manual_seed(0)
    plain = ConvNet(**sizes, time_conditioning=True)
    torch.manual_seed(0)
    conditioned = ConvNet(**sizes, time_conditioning=True, augment_dim=15)
    assert torch.equal(plain(x, t), conditioned(x, t))
    torch.nn.init.normal_(conditioned.augment_embedding.weight)
    assert torch.equal(conditioned(x, t), conditioned(x, t, augment=torch.zeros(2, 15)))
    assert not torch.equal(conditioned(x, t), conditioned(x, t, augment=torch.ones(2, 15)))
    with pytest.raises(InputError, match="augment_dim=0"):
        plain(x, t, augment=torch.zeros(2, 15))


@pytest.mark.parametrize("settings", [{"probability": 1.5}, {"dim": 9}])
def test_settings_are_checked(settings):
    with pytest.raises(InputError, match=rf"augment\.{next(iter(settings))}"):
        EDM(**settings)
