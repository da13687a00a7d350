"""Every network takes images that are not square, and can be told of an augmentation."""

import pytest
import torch

from ddpm.models.convnet import ConvNet
from ddpm.models.dit import DiT
from ddpm.models.jit import JiT
from ddpm.models.resunet import ResUNet
from ddpm.models.unet import UNet

LEVELS = {"widths": [8, 16], "attention_resolutions": [4], "num_heads": 1, "groups": 4}
TOKENS = {"size": None, "patch_size": 4, "depth": 1, "width": 16, "num_heads": 2}
NETWORKS = {
    ConvNet: {"width": 8, "time_conditioning": True},
    UNet: {**LEVELS, "num_blocks": 1},
    ResUNet: {**LEVELS, "num_res_blocks": 1, "dropout": 0.0},
    DiT: TOKENS,
    JiT: {**TOKENS, "bottleneck": 8},
}


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_accept_8x12_pixels_and_an_augmentation_embedding(network):
    shape = {"channels": 2, "out_channels": 2, "image_size": [8, 12], "num_classes": None}
    torch.manual_seed(0)
    plain = network(**shape, **NETWORKS[network])
    torch.manual_seed(0)
    net = network(**shape, **NETWORKS[network], augment_dim=3)
    own = dict(net.named_parameters())
    embedding = own.pop("augment_embedding.weight")
    assert all(torch.equal(value, own[name]) for name, value in plain.named_parameters())
    for weight in net.parameters():  # heads are zero at first
        torch.nn.init.normal_(weight, std=0.1)
    x_t, t = torch.randn(2, 2, 8, 12), torch.tensor([1, 500])
    with torch.no_grad():
        without, zeros, ones = (
            net(x_t, t, augment=value) for value in (None, torch.zeros(2, 3), torch.ones(2, 3))
        )
    assert without.shape == x_t.shape
    assert torch.equal(without, zeros)
    assert not torch.allclose(without, ones, atol=1e-4)
    assert embedding.shape[1] == 3
