"""What the pages of the walk-through share: digits, a small network, and pictures of tensors."""

import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from ddpm.data.digits import Digits
from ddpm.diffusion import GaussianDiffusion
from ddpm.figures import style
from ddpm.models.unet import UNet
from ddpm.objectives.x_0 import X0
from ddpm.schedules.cosine import cosine
from ddpm.weightings.min_snr import MinSNR

plt.rcParams.update(style.LOOK | {"figure.dpi": 80, "savefig.dpi": 160, "figure.figsize": (8, 3)})
torch.set_num_threads(1)  # a second thread does not pay for so small a network
WEIGHTS = Path("walkthrough.pt")  # written by page 3, read by pages 4 to 6
STEPS = int(os.environ.get("WALKTHROUGH_STEPS", "1500"))  # of training: two minutes or less


def digits() -> tuple[Tensor, Tensor]:
    """All training digits in [-1, 1], (N, 1, 16, 16), and their labels (N,)."""
    data_dir = os.environ.get("DDPM_DATA", "data")
    frame: dict[str, Any] = {"resize_mode": "resize", "background": 0, "flip": False}
    size: dict[str, Any] = {"channels": 1, "image_size": 16, "num_classes": 10}
    data = Digits(data_dir=data_dir, split="train", holdout=0.1, conditional=True, **size, **frame)
    data.prepare()
    images, labels = data.__getitems__(range(len(data)))
    return images.float() / 127.5 - 1, labels


def process() -> GaussianDiffusion:
    """The process of the default run: it suits short training."""
    betas = cosine(T=1000, s=0.008, max_beta=0.999)
    return GaussianDiffusion(betas=betas, objective=X0(), weighting=MinSNR(gamma=5.0))


def network() -> UNet:
    """An untrained network of 200,000 weights for 16 x 16 pixels and ten labels."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"channels": 1, "out_channels": 1, "image_size": 16, "num_classes": 10}
    blocks: dict[str, Any] = {"widths": [16, 64], "num_blocks": 1, "patch_size": 2, "groups": 1}
    return UNet(**size, **blocks, attention_resolutions=[4], num_heads=4)


def trained() -> UNet:
    """The network that page 3 has trained."""
    model = network()
    model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return model.eval().requires_grad_(False)


def show(rows: list[Tensor], columns: list[str] = [], names: list[str] = []) -> None:  # noqa: B006
    """A table of images: each row is (N, 1, H, W) with values in [-1, 1]."""
    tiles = [[((x.clamp(-1, 1) + 1) * 127.5).byte() for x in row] for row in rows]
    _, axes = plt.subplots(figsize=(8, style.strip_height(len(rows), len(rows[0]), 8)))
    style.tiles(axes, tiles, columns, names)
