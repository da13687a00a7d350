"""The split of data sets that come without one: what stays on which side."""

import pickle

import numpy as np
import pytest
from support.image_sets import build, everything, folder, random_pixels, save

from ddpm.data.mnist import MNIST
from ddpm.errors import InputError


@pytest.fixture
def many(tmp_path):
    """A folder of 200 pictures."""
    for n, pixels in enumerate(random_pixels(200, 8, 8, 3)):
        save(tmp_path / "images" / f"{n:03d}.png", pixels)
    return tmp_path / "images"


def pictures(data):
    return {image.tobytes() for image in everything(data)[0]}


def test_every_image_is_in_exactly_one_split(tmp_path):
    train = build("digits", tmp_path)
    held_out, whole = train.held_out(), build("digits", tmp_path, holdout=0)
    assert (len(train), len(held_out)) == (1617, 180)
    assert pictures(train).isdisjoint(pictures(held_out))
    assert pictures(train) | pictures(held_out) == pictures(whole)
    assert train.cache_file == held_out.cache_file == whole.cache_file
    assert set(held_out.__getitems__(range(180))[1].tolist()) == set(range(10))


def test_holdout_0_holds_nothing_out(many):
    data = folder(many)
    assert (len(data), data.held_out()) == (200, None)
    assert data.fingerprint == folder(many, holdout=0).fingerprint
    with pytest.raises(InputError, match=r"data.split=held_out.*data.holdout=0"):
        folder(many, split="held_out")


@pytest.mark.parametrize("share", [1, -0.1, True, "a"])
def test_holdout_must_be_below_1(many, share):
    with pytest.raises(InputError, match=r"data\.holdout"):
        folder(many, holdout=share)


def test_larger_holdout_contains_the_smaller_one(many):
    few, more = (pictures(folder(many, holdout=share).held_out()) for share in (0.1, 0.3))
    assert 5 < len(few) < len(more) < 90
    assert few < more


def test_added_images_move_no_other_and_duplicates_share_a_split(many):
    before = pictures(folder(many, holdout=0.2).held_out())
    for n, image in enumerate(everything(folder(many))[0]):
        save(many / "again" / f"{n}.png", image)
    for n, image in enumerate(random_pixels(50, 8, 8, 3, seed=1)):
        save(many / "new" / f"{n}.png", image)
    train = folder(many, holdout=0.2)
    held_out = train.held_out()
    assert before < pictures(held_out)
    assert pictures(train).isdisjoint(pictures(held_out))
    assert len(train) + len(held_out) == 450


def test_split_held_out_equals_the_held_out_part(many):
    held_out = folder(many, holdout=0.2).held_out()
    chosen = folder(many, holdout=0.2, split="held_out")
    assert chosen.fingerprint == held_out.fingerprint
    assert (everything(chosen)[0] == everything(held_out)[0]).all()
    assert chosen.held_out() is None


def test_fingerprint_depends_on_holdout_and_split(many):
    train = folder(many, holdout=0.2)
    others = train.held_out(), folder(many, holdout=0.3), folder(many)
    assert len({train.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_dataset_is_never_held_out_completely(tmp_path):
    save(tmp_path / "images" / "a.png", random_pixels(8, 8, 3))
    data = folder(tmp_path / "images", holdout=0.999999)
    assert (len(data), data.held_out()) == (1, None)


def test_digests_are_cached_and_rebuilt_when_damaged(many):
    data = folder(many, holdout=0.2)
    rows, file = data.rows, data.cache.digests_file
    stamp = file.stat().st_mtime_ns
    assert (folder(many, holdout=0.2).rows == rows).all()
    assert file.stat().st_mtime_ns == stamp
    file.write_bytes(b"nothing")
    assert (folder(many, holdout=0.2).rows == rows).all()
    assert np.load(file).shape == (200,)


def test_holdout_can_be_pickled_for_workers(many):
    data = folder(many, holdout=0.2)
    images = everything(data)[0]
    assert (everything(pickle.loads(pickle.dumps(data)))[0] == images).all()


def test_official_splits_are_used(tmp_path):
    for name, split in {
        "mnist": "test",
        "cifar10": "test",
        "pets": "test",
        "celeba": "valid",
    }.items():
        data = build(name, tmp_path)
        held_out = data.held_out()
        assert (held_out.split, held_out.source_split) == (split, split)
        assert held_out.settings == data.settings | {"split": split}
        assert build(name, tmp_path, split="test").held_out() is None
    assert MNIST.held_out_split in MNIST.splits


def test_three_splits_are_disjoint(many):
    three = folder(many, holdout=0.2, test_share=0.3)
    parts = [pictures(part) for part in (three, three.held_out(), three.with_split("test"))]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(three.with_split("all")) == 200
    assert parts[1] == pictures(folder(many, holdout=0.2).held_out())
    assert 30 < len(parts[2]) < 90
    assert len({three.with_split(s).fingerprint for s in three.splits}) == 4
    for bad in ({"holdout": 0.5, "test_share": 0.5}, {"split": "test"}):
        with pytest.raises(InputError, match=r"data\.(test_share|split)"):
            folder(many, **bad)


def test_folders_named_after_splits_are_splits(tmp_path):
    """The classes are the folders below them, the same in each split."""
    for n, name in enumerate(
        ["train/cat/0", "train/dog/0", "train/dog/1", "val/dog/0", "test/cat/0"]
    ):
        save(tmp_path / "images" / f"{name}.png", np.full((8, 8, 3), n, np.uint8))
    data = folder(tmp_path / "images", splits="named", num_classes=2)
    assert data.class_names == ["cat", "dog"]
    parts = {split: data.with_split(split) for split in data.splits}
    found = {split: everything(part) for split, part in parts.items()}
    levels = {split: images[:, 0, 0, 0].tolist() for split, (images, _) in found.items()}
    assert levels == {"train": [0, 1, 2], "held_out": [3], "test": [4], "all": [4, 0, 1, 2, 3]}
    assert found["held_out"][1] == [1]
    assert data.held_out().fingerprint == parts["held_out"].fingerprint
    assert len({part.fingerprint for part in parts.values()}) == 4
    with pytest.raises(InputError, match=r"splits=named: no images of split=train"):
        folder(tmp_path / "images" / "train", splits="named").prepare()
