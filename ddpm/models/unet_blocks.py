"""Double convolutions and the stages of a U-Net that are built from them."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm.models.convolution import conv_norm
from ddpm.models.group_norm import GroupNorm
from ddpm.models.layers import SelfAttention, conv3x3, linear, zeroed

EPS = 1e-5  # of every GroupNorm: PyTorch's own


class DoubleConv(nn.Module):
    """conv, norm, GELU, conv, norm: (B, C_in, H, W) -> (B, C, H, W); residual: GELU(x + that)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: int, residual: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        self.conv_1 = conv3x3(in_channels, out_channels)
        self.norm_1 = GroupNorm(groups, out_channels, EPS, "gelu")
        self.conv_2 = conv3x3(out_channels, out_channels)
        self.norm_2 = GroupNorm(groups, out_channels, EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = conv_norm(self.conv_1, self.norm_1, x)
        y = conv_norm(self.conv_2, self.norm_2, y)
        return F.gelu(x + y) if self.residual else y


class AddTime(nn.Module):
    """Adds a projection of the embedding to every pixel: (B, C, H, W), (B, D) -> (B, C, H, W)."""

    def __init__(self, emb_dim: int, channels: int) -> None:
        super().__init__()
        self.proj = linear(emb_dim, channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return x + rearrange(self.proj(emb), "b c -> b c 1 1")


class Attention(nn.Module):
    """Self-attention, then a perceptron on each pixel, both residual and pre-normalised."""

    def __init__(self, channels: int, *, num_heads: int, groups: int) -> None:
        super().__init__()
        self.attention = SelfAttention(channels, num_heads=num_heads, groups=groups, eps=EPS)
        self.norm = GroupNorm(groups, channels, EPS)
        self.linear_1 = linear(channels, channels)
        self.linear_2 = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        y = rearrange(self.norm(x), "b c h w -> b h w c")
        y = self.linear_2(F.gelu(self.linear_1(y)))
        return x + rearrange(y, "b h w c -> b c h w")


class Stage(nn.Module):
    """Double convolutions at one resolution with time embedding and optional attention."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        emb_dim: int,
        num_blocks: int,
        groups: int,
        num_heads: int | None,
    ) -> None:
        super().__init__()
        self.conv = DoubleConv(in_channels, channels, groups=groups)
        self.add_time = AddTime(emb_dim, channels)
        self.blocks = nn.Sequential()
        for _ in range(num_blocks - 1):
            self.blocks.append(DoubleConv(channels, channels, groups=groups, residual=True))
        self.attention: nn.Module = nn.Identity()
        if num_heads is not None:
            self.attention = Attention(channels, num_heads=num_heads, groups=groups)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = F.gelu(self.add_time(self.conv(x), emb))
        return self.attention(self.blocks(x))


class Down(Stage):
    """Halves the image, then a stage: (B, C_in, H, W) -> (B, C, H/2, W/2)."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return super().forward(F.avg_pool2d(x, 2), emb)
