"""A network prepared for inference."""

import copy

import torch

from ddpm.models.resunet import ResUNet
from ddpm.pretrained import for_inference


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


def test_weights_that_autocast_would_convert_are_converted_once():
    torch.manual_seed(0)
    model = ResUNet(
        channels=3, widths=[32, 64], num_res_blocks=1, image_size=8, attention_resolutions=[4],
        num_heads=1, dropout=0.0, groups=8, num_classes=None, out_channels=3,
    )  # fmt: skip
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    x = x.contiguous(memory_format=torch.channels_last)
    plain = for_inference(copy.deepcopy(model), "cpu")
    converted = for_inference(model, "cpu", autocast)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert {p.dtype for p in converted.parameters()} == {torch.float32, torch.bfloat16}
    with autocast(), torch.no_grad():
        assert torch.equal(plain(x, t), converted(x, t))


def test_weights_of_a_network_of_ones_own_are_left_alone():
    model = for_inference(torch.nn.Sequential(torch.nn.Linear(2, 2)), "cpu", autocast)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
