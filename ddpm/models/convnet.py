"""The lightweight network: three convolutions."""

from collections.abc import Iterable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm.limits.image_size import Size
from ddpm.models.layers import (
    AugmentEmbedding,
    ClassEmbedding,
    Conditioned,
    TimeEmbedding,
    linear,
    require,
)


class ConvNet(Conditioned):
    """Three 3x3 convolutions C -> width -> width -> out with ReLU; any image size.

    With time conditioning, a projection of the time (and class) embedding is added to the channels
    of both hidden layers. Without it this is the bare net, and t is ignored: 40,451 parameters on
    RGB with width 64.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        out_channels: int | None = None,
        image_size: Size | None = None,
        num_classes: int | None = None,
        width: int = 64,
        time_conditioning: bool = True,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        require(width >= 4 and width % 2 == 0, f"model.width={width}: must be even and at least 4")
        require(
            time_conditioning or num_classes is None,
            f"model.num_classes={num_classes}: labels need model.time_conditioning=true",
        )
        require(
            time_conditioning or not augment_dim,
            "augment: needs model.time_conditioning=true, or augment=none",
        )
        self.conv_1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_3 = nn.Conv2d(width, out_channels or channels, 3, padding=1)
        self.class_embedding = ClassEmbedding(num_classes, width)
        self.augment_embedding = AugmentEmbedding(augment_dim, width)
        if time_conditioning:
            self.time_embedding = TimeEmbedding(width, width)
        self.time_proj = linear(width, 2 * width) if time_conditioning else None

    def forward(
        self, x_t: Tensor, t: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """x_t (B, C, H, W), t (B,), label (B,), augment (B, A) -> (B, C_out, H, W)."""
        shift_1, shift_2 = self.shifts(t, label, augment)
        x = F.relu(self.conv_1(x_t) + shift_1)  # (B, width, H, W)
        x = F.relu(self.conv_2(x) + shift_2)  # (B, width, H, W)
        return self.conv_3(x)

    def shifts(
        self, t: Tensor, label: Tensor | None, augment: Tensor | None
    ) -> Iterable[Tensor | float]:
        """The terms of t, label and augment in the two hidden layers: two of (B, width, 1, 1)."""
        if self.time_proj is None:
            require(label is None, "model.time_conditioning=false: this network takes no labels")
            return 0.0, 0.0
        emb = self.condition(t, label, augment)  # (B, width)
        return rearrange(self.time_proj(emb), "b (layer c) -> layer b c 1 1", layer=2)
