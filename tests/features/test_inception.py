"""The Inception network of the FID, with random weights, against torch-fidelity's."""

import hashlib
import io
import sys

import pytest
import torch
from support.image_sets import random_pixels
from torch import nn

from ddpm.errors import InputError
from ddpm.features.inception import SHA256, Inception
from ddpm.features.network import bicubic


def images(size, count=2, channels=3):
    return torch.from_numpy(random_pixels(count, channels, size, size, seed=size))


@pytest.fixture(scope="module")
def theirs():
    """torch-fidelity's extractor with random weights."""
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Unread(library.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    file = io.BytesIO()
    torch.save({}, file)
    file.seek(0)
    torch.manual_seed(0)
    layers = ["2048", "logits_unbiased"]
    net = Unread("a", layers, feature_extractor_weights_path=file)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net


@pytest.fixture(scope="module")
def weights(theirs, tmp_path_factory):
    """A file of these weights, in the old format of the published one, and its SHA-256."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    state = theirs.state_dict()
    torch.save(dict(state), path, _use_new_zipfile_serialization=False)
    return {"weights": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.fixture(scope="module")
def ours(weights):
    return Inception(**weights)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64, 299, 400])
def test_features_equal_torch_fidelity(size, ours, theirs):
    pictures = images(size)
    with torch.inference_mode():
        features, logits = theirs(pictures)
    found = ours(pictures)
    assert found.shape == (2, 2048)
    assert features.abs().mean() > 0.01
    assert (found - features).abs().max() <= 1e-6
    log_probs = ours.log_probs(found)
    assert log_probs.shape == (2, ours.num_classes)
    assert (log_probs - logits.log_softmax(1)).abs().max() <= 1e-6


@pytest.mark.slow
def test_clean_resize_is_bicubic_and_keeps_299_pixels(weights, theirs):
    clean = Inception(**weights, resize="clean")
    pictures = images(299)
    assert torch.equal(clean.resized(pictures), pictures.float())
    assert torch.equal(clean.resized(images(64)), bicubic(images(64), 299))
    with torch.inference_mode():
        assert (clean(pictures) - theirs(pictures)[0]).abs().max() <= 1e-6
    assert clean.passport()["resize"] == "clean"


@pytest.mark.slow
def test_grey_images_equal_three_equal_channels(ours):
    grey = images(32, channels=1)
    assert torch.equal(ours(grey), ours(grey.expand(-1, 3, -1, -1)))


@pytest.mark.slow
def test_only_the_published_weights_are_called_inception(ours, weights, monkeypatch):
    assert (ours.name, ours.passport()["digest"]) == ("inception_other", weights["sha256"][:12])
    monkeypatch.setattr("ddpm.features.inception.SHA256", weights["sha256"])
    names = [Inception(**weights, resize=resize).name for resize in ("legacy", "clean")]
    assert names == ["inception", "inception_clean"]


def test_missing_files_packages_and_wrong_options_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"features=inception needs a file.\nThe file is weights-"):
        Inception()
    pytest.importorskip("torch_fidelity")
    code = tmp_path / "code.pth"
    code.write_bytes(b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    with pytest.raises(InputError, match=f"code.pth: its SHA-256 is .* not {SHA256}"):
        Inception(weights=str(code))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[fid\]'"):
        Inception(weights=str(code))


def test_weights_of_another_network_are_refused(tmp_path):
    pytest.importorskip("torch_fidelity")
    path = tmp_path / "other.pth"
    torch.save(nn.Linear(1, 1).state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="not the weights of the FID's Inception"):
        Inception(weights=str(path), sha256=digest)
