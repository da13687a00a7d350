"""Common parts of all features: resize, batches, channels, files of weights."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.image_sets import random_pixels
from torch import nn

from ddpm.errors import InputError
from ddpm.features import files
from ddpm.features.network import NetworkFeatures, bicubic
from ddpm.features.pixels import Pixels
from ddpm.features.small import MNIST


def random_images(count=4, channels=1, size=32):
    return torch.from_numpy(random_pixels(count, channels, size, size))


class Mean(NetworkFeatures):
    """Returns the pixels that reach the network."""

    name, size, layer, colour, batch = "mean", 8, "mean", True, 2

    def __init__(self):
        super().__init__(nn.Flatten(), "0" * 64)


@pytest.mark.parametrize("size", [5, 8, 13, 32])
def test_bicubic_resize_equals_pillow_on_floats(size):
    images = random_images(2, 3, 13)
    for image, ours in zip(images, bicubic(images, size), strict=True):
        for channel, found in zip(image.numpy(), ours, strict=True):
            picture = Image.fromarray(channel.astype(np.float32), mode="F")
            theirs = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
            assert np.abs(theirs.clip(0, 255) - found.numpy()).max() < 1e-3


def test_images_of_the_target_size_are_not_resampled():
    images = random_images(size=8)
    assert torch.equal(bicubic(images, 8), images.float())


def test_grey_images_get_three_equal_channels():
    images = random_images(5, 1, 8)
    features = Mean()(images)
    assert features.shape == (5, 3 * 64)
    assert torch.equal(features, Mean()(images.expand(-1, 3, -1, -1)))
    assert torch.equal(features[:, :64], images.flatten(1).float())
    assert not features.is_inference()


@pytest.mark.parametrize("images", [torch.zeros(1, 1, 8, 8), random_images()[0]])
def test_inputs_other_than_uint8_batches_are_refused(images):
    with pytest.raises(InputError, match="uint8"):
        Mean()(images)


def test_unsupported_channel_counts_are_refused():
    Mean().check_channels(1)
    Mean().check_channels(3)
    with pytest.raises(InputError, match="features=mean: for pictures with 1 or 3 channel"):
        Mean()(random_images(channels=2))
    with pytest.raises(InputError, match=r"features=mnist: .* 1 channel.* have 3"):
        MNIST().check_channels(3)
    with pytest.raises(InputError, match="features=mnist"):
        MNIST()(random_images(channels=3))


def test_float32_matmul_precision_is_restored():
    torch.set_float32_matmul_precision("high")
    try:
        Mean()(random_images())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_pixel_features_are_flattened_images_in_0_to_1():
    images = random_images(3, 3, 4)
    assert torch.equal(Pixels()(images), images.flatten(1) / 255)
    assert Pixels().passport() == {"name": "pixels", "dtype": "float32"}


# files of weights


@pytest.fixture
def weights(tmp_path):
    """A safetensors file, and its SHA-256."""
    path = tmp_path / "net.safetensors"
    save_file(nn.Linear(2, 3).state_dict(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_weight_files_are_read_and_their_digest_returned(weights, tmp_path):
    path, digest = weights
    for expected in (None, digest):
        tensors, found = files.read(path, expected, "")
        assert (set(tensors), found) == ({"weight", "bias"}, digest)
    for zipped in (True, False):
        torch.save(tensors, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
        digest = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()
        again, found = files.read(tmp_path / "net.pth", digest, "")
        assert torch.equal(again["weight"], tensors["weight"])
        assert found == digest


def test_wrong_digests_and_missing_or_damaged_files_are_refused(weights, tmp_path):
    (tmp_path / "net.pth").write_bytes(b"\x80\x04cposix\nsystem\n")  # would run a program
    path = weights[0]
    for file, expected in ((path, "0" * 64), (tmp_path / "net.pth", "0" * 64)):
        with pytest.raises(InputError, match=r"its SHA-256 is \w{64}, not 0{64}\.\nFetch it"):
            files.read(file, expected, "Fetch it.")
    with pytest.raises(InputError, match=r"does not end in \.safetensors"):
        files.read(tmp_path / "net.pth", None, "")
    with pytest.raises(InputError, match=r"features.weights=\S*none.pth: no such file.\nFetch it"):
        files.read(tmp_path / "none.pth", "0" * 64, "Fetch it.")
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="not a safetensors file"):
        files.read(path, None, "")
    with pytest.raises(InputError, match="not a file"):
        files.read(tmp_path, "0" * 64, "")


def test_pickled_code_is_not_run_even_with_a_known_digest(tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=r"features.weights=\S*: "):
        files.read(path, digest, "")


def test_weights_of_another_network_are_refused():
    net = nn.Linear(2, 3)
    for tensors in (
        nn.Linear(3, 3).state_dict(),
        {"weight": net.weight},
        {**net.state_dict(), "a": 1},
    ):
        with pytest.raises(InputError, match="not the weights of a line: 1 tensors"):
            files.fill(net, tensors, "a line")
