"""DINOv2's network with random weights."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from support.image_sets import random_pixels
from torch import nn

from ddpm.errors import InputError
from ddpm.features import dinov2
from ddpm.features.dinov2 import PUBLISHED, DINOv2, VisionTransformer


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights of the smallest network."""
    torch.manual_seed(0)
    net = VisionTransformer(*dinov2.ARCHITECTURES["vits14"])
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.02)
    path = tmp_path_factory.mktemp("dinov2") / "random.safetensors"
    save_file(net.state_dict(), path)
    return str(path)


def images(channels=3):
    return torch.from_numpy(random_pixels(2, channels, 32, 32))


@pytest.mark.slow
def test_features_are_deterministic_and_described_by_the_passport(weights):
    features = DINOv2(weights=weights, arch="vits14")
    found = features(images())
    assert found.shape == (2, 384)
    assert torch.equal(found, features(images()))
    assert (found[:1] - features(images()[:1])).abs().max() < 1e-5
    assert found.mean(1).abs().max() < 0.1  # after the normalisation
    assert features(images(1)).shape == (2, 384)
    passport = features.passport()
    assert (passport["name"], passport["size"]) == ("dinov2_vits14", 224)


@pytest.mark.parametrize(("arch", "millions"), [("vits14", 22), ("vitb14", 87), ("vitl14", 304)])
def test_parameter_counts_match_the_published_models(arch, millions):
    with torch.device("meta"):
        net = VisionTransformer(*dinov2.ARCHITECTURES[arch])
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == millions


def test_block_equals_torch_transformer_encoder_layer():
    """nn.TransformerEncoderLayer has no layer scale, so ours stays at 1."""
    torch.manual_seed(0)
    ours = dinov2.Block(12, heads=3)
    options = {"dropout": 0.0, "activation": F.gelu, "batch_first": True, "norm_first": True}
    theirs = nn.TransformerEncoderLayer(12, 3, 48, layer_norm_eps=1e-6, **options)
    names = {"qkv.": "in_proj_", "attn.": "self_attn.", "proj.": "out_proj.", "mlp.": ""}
    names |= {"fc1": "linear1", "fc2": "linear2"}
    state = {}
    for name, tensor in ours.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state |= {} if name.startswith("ls") else {name: tensor}
    theirs.load_state_dict(state)
    x = torch.randn(2, 5, 12)
    assert (ours(x) - theirs(x)).abs().max() < 1e-6


def test_position_embeddings_of_the_training_size_are_not_interpolated():
    net = VisionTransformer(6, 0, 1)
    nn.init.normal_(net.pos_embed)
    assert torch.equal(net._positions(37, 37), net.pos_embed[:, 1:])
    assert net._positions(16, 16).shape == (1, 256, 6)


def test_missing_or_wrong_weight_files_are_refused(weights, tmp_path):
    with pytest.raises(InputError, match=r"features=dinov2 needs a file(.|\n)*dinov2_vitl14_pre"):
        DINOv2()
    with pytest.raises(InputError, match="not the weights of DINOv2 vitb14: "):
        DINOv2(weights=weights, arch="vitb14")
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(InputError, match=f"a.pth: its SHA-256 is .* not {PUBLISHED['vits14']}"):
        DINOv2(weights=str(tmp_path / "a.pth"), arch="vits14")
