"""features=data: a classifier that is trained once and cached with the data."""

import pytest
import torch
from support.image_sets import folder, random_pixels, save

from ddpm.errors import InputError
from ddpm.features import classifier
from ddpm.features.data import OwnData


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 20)
    monkeypatch.setattr(classifier, "EPOCHS", 1)


@pytest.fixture
def tree(tmp_path):
    """Forty pictures in two classes, dark and bright."""
    for n, image in enumerate(random_pixels(40, 8, 8, 3) // 2):
        save(tmp_path / "images" / "ab"[n % 2] / f"{n}.png", image + 128 * (n % 2))
    return tmp_path / "images"


def test_classifier_is_trained_once_and_cached(tree, monkeypatch, caplog):
    data = folder(tree)
    features = OwnData(data)
    assert features.stand_in()(data.__getitems__([0, 1])[0]).shape == (2, 128)
    assert features.seconds_to_train() > 0
    assert not list(tree.parent.glob("cache/*.safetensors")), "an estimate keeps nothing"
    images, labels = data.__getitems__(range(len(data)))
    found = features(images)
    assert found.shape == (40, 128)
    assert torch.equal(features.log_probs(found).argmax(1), labels)
    assert features.num_classes == 2
    assert "trained a classifier on 36 pictures" in caplog.text
    monkeypatch.setattr("ddpm.features.data.train", None)
    again = OwnData(folder(tree))
    assert torch.equal(again.to(torch.device("cpu"))(images), found)
    assert again.passport() == features.passport()
    assert again.stand_in() is None
    assert again.seconds_to_train() == 0
    assert again.passport()["name"] == "data"
    assert again.passport()["trained_on"] == data.fingerprint[:12]
    assert len(list(tree.parent.glob("cache/features-folder-*.safetensors"))) == 1


def test_changed_data_train_a_new_classifier(tree):
    before = OwnData(folder(tree)).passport()
    save(tree / "a" / "more.png", random_pixels(8, 8, 3, seed=1))
    after = OwnData(folder(tree)).passport()
    assert before["digest"] != after["digest"]
    assert before["trained_on"] != after["trained_on"]


def test_data_without_classes_are_refused_with_an_alternative(tmp_path):
    save(tmp_path / "images" / "1.png", random_pixels(8, 8, 3))
    with pytest.raises(InputError, match=r"has no classes(.|\n)*features=efficientnet"):
        OwnData(folder(tmp_path / "images")).passport()


def test_damaged_cache_file_is_named(tree):
    features = OwnData(folder(tree))
    features.passport()
    features.file.write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match=r"not a safetensors file(.|\n)*Remove it"):
        OwnData(folder(tree)).passport()
