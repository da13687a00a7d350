"""The bundled classifiers: files, accuracy and training."""

import os
import re
from pathlib import Path

import pytest
import torch
from support.base import ROOT
from support.image_sets import build, random_pixels

from ddpm.errors import InputError
from ddpm.features import classifier, small
from ddpm.features.small import MNIST, Digits, FashionMNIST

DATA = Path(os.environ.get("DDPM_DATA", ROOT / "data"))
MODELS = [Digits, MNIST, FashionMNIST]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The held-out digits and their labels."""
    held_out = build("digits", tmp_path_factory.mktemp("data")).held_out()
    return held_out.__getitems__(range(len(held_out)))


@pytest.mark.parametrize("model", MODELS)
def test_model_card_lists_digest_and_size_of_each_file(model):
    features, file = model(), small.FOLDER / f"{model.name}.safetensors"
    assert file.stat().st_size <= 700_000
    card = (small.FOLDER / "README.md").read_text()
    (row,) = re.findall(rf"^\| `{model.name}` \| .*$", card, re.M)
    assert f"`{model.sha256}`" in row
    assert f"{file.stat().st_size:,}" in row
    passport = {"name": model.name, "digest": model.sha256[:12], "size": model.size}
    passport |= {"resize": "bicubic", "layer": "hidden", "dtype": "float32"}
    assert features.passport() == passport


def test_model_card_states_the_training_settings():
    card = " ".join((small.FOLDER / "README.md").read_text().split())
    assert f"batches of {classifier.BATCH}" in card
    assert f"{classifier.EPOCHS} passes but at least {classifier.STEPS} steps" in card
    assert f"from {classifier.LR:g} to 0" in card


def test_a_damaged_or_missing_file_is_refused(tmp_path, monkeypatch):
    content = bytearray((small.FOLDER / "digits.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "digits.safetensors").write_bytes(content)
    monkeypatch.setattr(small, "FOLDER", tmp_path)
    with pytest.raises(InputError, match=r"digits.safetensors: its SHA-256 is (.|\n)*install"):
        Digits()
    with pytest.raises(InputError, match=r"mnist.safetensors: no such file"):
        MNIST()


def accuracy(features, images, labels):
    return (features.log_probs(features(images)).argmax(1) == labels).double().mean().item()


def test_accuracy_on_held_out_digits(digits):
    images, labels = digits
    features = Digits()
    assert accuracy(features, images, labels) >= 0.97
    assert features(images).square().mean().sqrt() == pytest.approx(1, abs=0.05)
    assert features.log_probs(features(images)).exp().sum(1) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "least"), [(MNIST, 0.985), (FashionMNIST, 0.88)])
def test_accuracy_on_the_test_split(model, least, tmp_path):
    raw = DATA / model.__name__
    if not raw.is_dir():
        pytest.skip(f"no {raw}")
    (tmp_path / model.__name__ / "raw").mkdir(parents=True)
    for file in (raw / "raw").glob("*.gz"):
        (tmp_path / model.__name__ / "raw" / file.name).symlink_to(file)
    data = build(model.name, tmp_path, split="test")
    assert accuracy(model(), *data.__getitems__(range(len(data)))) >= least


@pytest.mark.parametrize("model", MODELS)
def test_features_do_not_depend_on_the_batch(model):
    features = model()
    images = torch.from_numpy(random_pixels(7, 1, 28, 28))  # of another size than the network's
    together = features(images)
    assert together.shape == (7, model.width)
    assert torch.equal(together, features(images))
    alone = torch.cat([features(image[None]) for image in images])
    assert (together - alone).abs().max() < 1e-5


def test_training_is_deterministic_and_keeps_the_global_random_state(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 3)
    images = torch.from_numpy(random_pixels(20, 3, 9, 9))
    state = torch.get_rng_state()
    shape = {"size": 8, "width": 4, "num_classes": 2}
    one, two = (classifier.train(images, torch.arange(20) % 2, **shape) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    assert one(images[:, :, :8, :8].float()).shape == (20, 4)
