"""Samples are not augmented, as the network is conditioned on the augmentation."""

import functools

import pytest
import torch

from ddpm.augment.edm import EDM
from ddpm.denoising import Denoiser, training_loss
from ddpm.diffusion import GaussianDiffusion
from ddpm.models.unet import UNet
from ddpm.objectives.x_0 import X0
from ddpm.samplers.ddim import DDIM
from ddpm.schedules.cosine import cosine


def trained(conditioned):
    """Trained on one picture, bright above and below left, transformed with probability 1/2."""
    torch.manual_seed(0)
    picture = -torch.ones(1, 8, 8)
    picture[:, :3] = 1
    picture[:, :, :2] = 1
    net = UNet(
        channels=1, out_channels=1, image_size=8, num_classes=None, widths=[16, 32], num_blocks=1,
        attention_resolutions=[], num_heads=1, groups=4, augment_dim=15,
    )  # fmt: skip
    diffusion = GaussianDiffusion(betas=cosine(T=50, s=0.008, max_beta=0.999), objective=X0())
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    augment, generator = EDM(probability=0.5), torch.Generator().manual_seed(0)
    for _ in range(400):
        x_0, what = augment(picture.expand(32, 1, 8, 8), generator, slice(32), 32)
        model = functools.partial(net, augment=what) if conditioned else net
        optimizer.zero_grad()
        training_loss(diffusion, model, x_0).backward()
        optimizer.step()
    with torch.no_grad():
        x_T = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        *_, samples = DDIM(steps=10, eta=0)(Denoiser(net.eval(), diffusion), x_T, torch.randn_like)
    return (samples - picture).abs().mean((1, 2, 3))


@pytest.mark.slow
def test_samples_are_not_augmented_when_the_network_is_conditioned():
    with_it, without = trained(conditioned=True), trained(conditioned=False)
    assert with_it.median() < 0.15
    assert without.median() > 0.4
