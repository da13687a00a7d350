"""A classifier of noisy images: the downward half of the self-attention U-Net."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.errors import InputError
from ddpm.limits.image_size import Size, sides
from ddpm.limits.parts import check_limits
from ddpm.models.group_norm import GroupNorm
from ddpm.models.layers import (
    TimeEmbedding,
    check_image_size,
    check_widths,
    linear,
)
from ddpm.models.unet_blocks import EPS, Down, Stage


class NoisyClassifier(nn.Module):
    """p(label | x_t) for classifier guidance (Dhariwal & Nichol 2021, arXiv:2105.05233, section 4).

    One level per width, each half the size of the one above; attention at the listed resolutions
    and always at the last; then the mean over all pixels.
    """

    recomputable = (Stage,)

    def __init__(
        self,
        *,
        channels: int = 3,
        image_size: Size,
        num_classes: int | None,
        widths: Sequence[int] = (64, 128, 256, 256),
        num_blocks: int = 1,
        attention_resolutions: Sequence[int] = (8,),
        num_heads: int = 4,
        groups: int = 8,
    ) -> None:
        super().__init__()
        if num_classes is None:
            raise InputError("model=classifier: the data set has no classes")
        check_widths(widths, groups=groups)
        check_image_size(image_size, halvings=len(widths) - 1, model="classifier")
        check_limits("model", num_blocks=num_blocks, num_heads=num_heads, num_classes=num_classes)
        first, last = widths[0], widths[-1]
        options = {"emb_dim": 4 * first, "num_blocks": num_blocks, "groups": groups}
        self.time_embedding = TimeEmbedding(first, 4 * first)
        heads = [
            num_heads if min(sides(image_size)) >> level in attention_resolutions else None
            for level in range(len(widths))
        ]
        self.stem = Stage(channels, first, num_heads=heads[0], **options)
        self.downs = nn.ModuleList(
            Down(above, width, num_heads=heads[level], **options)
            for level, (above, width) in enumerate(pairwise(widths), start=1)
        )
        self.bottleneck = Stage(last, last, num_heads=num_heads, **options)
        self.norm = GroupNorm(groups, last, EPS, "silu")
        self.head = linear(last, num_classes)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t (B, C, H, W), t (B,) -> logits (B, num_classes)."""
        emb = F.silu(self.time_embedding(t))  # (B, 4 widths[0])
        x = self.stem(x_t, emb)
        for down in self.downs:
            x = down(x, emb)
        x = self.norm(self.bottleneck(x, emb))  # (B, widths[-1], H / 2^n, W / 2^n)
        return self.head(x.mean((2, 3)))
