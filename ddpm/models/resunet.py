"""The residual attention U-Net of Ho et al. 2020."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.limits.image_size import Size, sides
from ddpm.limits.parts import check_limits
from ddpm.models.convolution import Conv2d, conv_norm
from ddpm.models.group_norm import GroupNorm
from ddpm.models.layers import (
    AugmentEmbedding,
    ClassEmbedding,
    Conditioned,
    SelfAttention,
    TimeEmbedding,
    check_image_size,
    check_multiple,
    check_widths,
    conv3x3,
    linear,
    require,
    variance_scaling,
    zeroed,
)

Factory = Callable[..., nn.Module]  # a block's constructor, all but the channels given


class ResnetBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))) + time)))), widths C_in -> C -> C.

    A skip is concatenated to x inside the block, so that recomputing it does not store the
    concatenation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        *,
        groups: int,
        dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, eps, "silu")
        self.conv1 = conv3x3(in_channels, out_channels)
        self.time_emb_proj = linear(emb_dim, out_channels)
        self.norm2 = GroupNorm(groups, out_channels, eps, "silu")
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(conv3x3(out_channels, out_channels))
        self.conv_shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else variance_scaling(Conv2d(in_channels, out_channels, 1))
        )

    def forward(self, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        y = conv_norm(self.conv1, self.norm2, self.norm1(x), self.time_emb_proj(emb))
        return self.conv2(self.dropout(y), plus=self.conv_shortcut(x))


class Downsample(nn.Module):
    """Stride-2 convolution: H, W -> H/2, W/2.

    With padding 0 it pads right and below, as TensorFlow's "SAME"; with 1 on all sides.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour, then a convolution: H, W -> 2H, 2W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """Residual blocks, each followed by attention, then downsampling; all outputs are skips."""

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int,
        resnet: Factory,
        attention: Factory,
        downsample: Factory | None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnet(channels, width) for channels in in_channels)
        self.attentions = nn.ModuleList(attention(width) for _ in in_channels)
        self.downsamplers = nn.ModuleList([] if downsample is None else [downsample(width)])

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        outputs = [x]
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            outputs.append(attention(resnet(outputs[-1], emb)))
        for downsample in self.downsamplers:
            outputs.append(downsample(outputs[-1]))
        return outputs[1:]


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, width: int, resnet: Factory, attention: Factory) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([resnet(width, width), resnet(width, width)])
        self.attentions = nn.ModuleList([attention(width)])

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, emb))
        return self.resnets[1](x, emb)


class UpBlock(nn.Module):
    """Residual blocks, each with one skip and followed by attention, then upsampling."""

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int,
        resnet: Factory,
        attention: Factory,
        *,
        resample: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnet(channels, width) for channels in in_channels)
        self.attentions = nn.ModuleList(attention(width) for _ in in_channels)
        self.upsamplers = nn.ModuleList([Upsample(width)] if resample else [])

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        parts = zip(self.resnets, self.attentions, reversed(skips), strict=True)
        for resnet, attention, skip in parts:
            x = attention(resnet(x, emb, skip))
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class ResUNet(Conditioned):
    """The U-Net of appendix B, Ho et al. 2020 (arXiv:2006.11239), the size set by its widths.

    One level per width, each half the size of the one above; attention at the listed resolutions
    (of the shorter side; others are ignored) and always in the middle. Outputs and parameter names
    are those of diffusers' `UNet2DModel`: state dicts load both ways. The defaults are its DDPM
    configuration; the last seven arguments are the choices that published networks differ in.

    Args:
        head_dim: channels of an attention head; None: `num_heads` heads.
        mid_attention: whether the middle has attention.
        norm_eps: of every GroupNorm; 1e-6 in Ho et al.'s code.
        downsample_padding: 0: right and below; 1: on all sides.
        freq_shift, flip_sin_to_cos: of the timestep embedding.
        null_class: whether there is a class that stands for no label.
    """

    recomputable = (ResnetBlock, SelfAttention, Downsample, Upsample)

    def __init__(
        self,
        *,
        channels: int = 3,
        out_channels: int | None = None,
        image_size: Size,
        num_classes: int | None = None,
        widths: Sequence[int] = (128, 256, 512, 512, 512),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        num_heads: int = 1,
        groups: int = 32,
        dropout: float = 0.0,
        augment_dim: int = 0,
        head_dim: int | None = None,
        mid_attention: bool = True,
        norm_eps: float = 1e-6,
        downsample_padding: int = 0,
        freq_shift: float = 1,
        flip_sin_to_cos: bool = False,
        null_class: bool = True,
    ) -> None:
        super().__init__()
        bottom = len(widths) - 1
        check_widths(widths, groups=groups)
        check_image_size(image_size, halvings=bottom, model="resunet")
        check_limits("model", num_res_blocks=num_res_blocks, num_heads=num_heads, dropout=dropout)
        check_limits("model", norm_eps=norm_eps, downsample_padding=downsample_padding)
        check_embedding(widths[0], freq_shift)
        first, last = widths[0], widths[bottom]
        resnet = partial(
            ResnetBlock, emb_dim=4 * first, groups=groups, dropout=dropout, eps=norm_eps
        )
        downsample = partial(Downsample, padding=downsample_padding)

        def attention(width: int) -> nn.Module:
            if head_dim is not None:
                check_multiple(width, of="head_dim", parts=head_dim)
            heads = num_heads if head_dim is None else width // head_dim
            return SelfAttention(width, num_heads=heads, groups=groups, eps=norm_eps)

        self.time_embedding = TimeEmbedding(
            first, 4 * first, freq_shift, flip_sin_to_cos=flip_sin_to_cos
        )
        self.class_embedding = ClassEmbedding(num_classes, 4 * first, null_class=null_class)
        self.augment_embedding = AugmentEmbedding(augment_dim, 4 * first)
        self.conv_in = conv3x3(channels, first)
        down, up = [], []
        for level, width in enumerate(widths):
            above, below = widths[max(level - 1, 0)], widths[min(level + 1, bottom)]
            inputs = [above] + (num_res_blocks - 1) * [width]
            joined = [below + width] + (num_res_blocks - 1) * [2 * width] + [width + above]
            has_attention = min(sides(image_size)) >> level in attention_resolutions
            attend: Factory = attention if has_attention else nn.Identity
            halve = downsample if level < bottom else None
            down.append(DownBlock(inputs, width, resnet, attend, halve))
            up.append(UpBlock(joined, width, resnet, attend, resample=level > 0))
        self.down_blocks = nn.ModuleList(down)
        self.mid_block = MidBlock(last, resnet, attention if mid_attention else nn.Identity)
        self.up_blocks = nn.ModuleList(reversed(up))
        self.conv_norm_out = GroupNorm(groups, first, norm_eps, "silu")
        self.conv_out = zeroed(conv3x3(first, out_channels or channels))

    def forward(
        self, x_t: Tensor, t: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """x_t (B, C, H, W), t (B,), label (B,), augment (B, A) -> (B, C_out, H, W)."""
        emb = self.condition(t, label, augment)  # (B, 4 widths[0])
        skips = [self.conv_in(x_t)]  # (B, widths[0], H, W)
        for block in self.down_blocks:
            skips += block(skips[-1], emb)
        x = self.mid_block(skips[-1], emb)  # (B, widths[-1], H / 2^n, W / 2^n)
        for block in self.up_blocks:
            rest = len(skips) - len(block.resnets)  # type: ignore[arg-type]
            x = block(x, emb, skips[rest:])
            skips = skips[:rest]
        return self.conv_out(self.conv_norm_out(x))


def check_embedding(width: int, freq_shift: float) -> None:
    require(
        freq_shift < width // 2,
        f"model.freq_shift={freq_shift}: must be below half of the first width, {width // 2}",
    )
