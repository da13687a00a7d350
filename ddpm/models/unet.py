"""The self-attention U-Net: double convolutions down and up, with skip connections."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.limits.image_size import Size, sides
from ddpm.limits.parts import check_limits
from ddpm.models.convolution import Conv2d
from ddpm.models.layers import (
    AugmentEmbedding,
    ClassEmbedding,
    Conditioned,
    TimeEmbedding,
    check_image_size,
    check_widths,
    conv3x3,
    variance_scaling,
    zeroed,
)
from ddpm.models.unet_blocks import Down, Stage


class Up(Stage):
    """Doubles the image, joins the skip, then a stage: (B, C_in, H/2, W/2) -> (B, C, H, W).

    The channels are reduced before upsampling, which commutes with it; the following convolution,
    at full size, then has a third fewer input channels.
    """

    def __init__(self, in_channels: int, channels: int, **options: Any) -> None:
        super().__init__(2 * channels, channels, **options)
        self.shrink = variance_scaling(Conv2d(in_channels, channels, 1))

    def forward(  # type: ignore[override]
        self, x: Tensor, skip: Tensor, emb: Tensor
    ) -> Tensor:
        x = F.interpolate(self.shrink(x), scale_factor=2.0, mode="nearest")  # (B, C, H, W)
        return super().forward(torch.cat([x, skip], dim=1), emb)


class UNet(Conditioned):
    """U-Net (Ronneberger et al. 2015, arXiv:1505.04597) for the noise of Ho et al. 2020.

    One level per width, each half the size of the one above; attention at the listed resolutions
    (of the shorter side; others are ignored) and always in the bottleneck. With a patch_size p the
    network sees the image as H/p x W/p pixels with p^2 times the channels: p^2 times less work, for
    images without fine detail.
    """

    recomputable = (Stage,)

    def __init__(
        self,
        *,
        channels: int = 3,
        out_channels: int | None = None,
        image_size: Size,
        num_classes: int | None = None,
        widths: Sequence[int] = (64, 128, 256, 256),
        num_blocks: int = 2,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        num_heads: int = 4,
        groups: int = 8,
        patch_size: int = 1,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        check_widths(widths, groups=groups)
        check_limits("model", num_blocks=num_blocks, num_heads=num_heads, patch_size=patch_size)
        check_image_size(image_size, halvings=len(widths) - 1, model="unet", patch_size=patch_size)
        first, last = widths[0], widths[-1]
        self.patch_size = patch_size
        side = min(sides(image_size)) // patch_size
        self.time_embedding = TimeEmbedding(first, 4 * first)
        self.class_embedding = ClassEmbedding(num_classes, 4 * first)
        self.augment_embedding = AugmentEmbedding(augment_dim, 4 * first)
        options = {"emb_dim": 4 * first, "num_blocks": num_blocks, "groups": groups}
        heads = [
            num_heads if side >> level in attention_resolutions else None
            for level in range(len(widths))
        ]
        self.stem = Stage(channels * patch_size**2, first, num_heads=heads[0], **options)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (above, width) in enumerate(pairwise(widths)):
            self.downs.append(Down(above, width, num_heads=heads[level + 1], **options))
            self.ups.insert(0, Up(width, above, num_heads=heads[level], **options))
        self.bottleneck = Stage(last, last, num_heads=num_heads, **options)
        # The initial prediction is zero, the mean of the noise.
        self.head = zeroed(conv3x3(first, (out_channels or channels) * patch_size**2))

    def forward(
        self, x_t: Tensor, t: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """x_t (B, C, H, W), t (B,), label (B,), augment (B, A) -> (B, C_out, H, W)."""
        emb = self.condition(t, label, augment)  # (B, 4 widths[0])
        x = F.pixel_unshuffle(x_t, self.patch_size)  # (B, C p^2, H / p, W / p)
        x = self.stem(x, emb)  # (B, widths[0], H / p, W / p)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(x, emb)
        x = self.bottleneck(x, emb)  # (B, widths[-1], H / (p 2^n), W / (p 2^n))
        for up in self.ups:
            x = up(x, skips.pop(), emb)
        return F.pixel_shuffle(self.head(x), self.patch_size)
