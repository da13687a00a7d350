"""Shared layers: timestep and class embedding, attention, checks."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm.errors import InputError
from ddpm.limits.image_size import Size
from ddpm.limits.parts import check_limits
from ddpm.models.convolution import Conv2d
from ddpm.models.group_norm import GroupNorm

Layer = TypeVar("Layer", bound=nn.Conv2d | nn.Linear)


def variance_scaling(layer: Layer) -> Layer:
    """Uniform weights of variance 1 / mean(fan_in, fan_out), zero biases: Ho et al.'s choice."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def zeroed(layer: Layer) -> Layer:
    """Zero weights and biases: a residual branch that ends with it starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def linear(in_features: int, out_features: int) -> nn.Linear:
    return variance_scaling(nn.Linear(in_features, out_features))


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, padding: int = 1) -> Conv2d:
    return variance_scaling(Conv2d(in_channels, out_channels, 3, stride, padding))


def timestep_embedding(
    t: Tensor, dim: int, freq_shift: float = 1, *, flip_sin_to_cos: bool = False
) -> Tensor:
    """Sines, then cosines, of geometrically spaced frequencies: (B,) -> (B, dim), in float32.

    freq_k = 10000^(-k / (dim/2 - freq_shift)), k = 0 .. dim/2 - 1: section 3.5 of Vaswani et al.
    2017 (arXiv:1706.03762), by default with the spacing of Ho et al.'s code (arXiv:2006.11239).

    Args:
        flip_sin_to_cos: cosines first.
    """
    k = torch.arange(dim // 2, dtype=torch.float32, device=t.device)
    freq = torch.exp(-math.log(10000) * k / (dim // 2 - freq_shift))
    angle = t.float()[:, None] * freq  # (B, dim/2)
    parts = [angle.sin(), angle.cos()]
    return torch.cat(parts[::-1] if flip_sin_to_cos else parts, dim=1)


class TimeEmbedding(nn.Module):
    """Sinusoids through a two-layer perceptron: t (B,) -> (B, D). Appendix B, Ho et al. 2020."""

    def __init__(
        self, channels: int, dim: int, freq_shift: float = 1, *, flip_sin_to_cos: bool = False
    ) -> None:
        super().__init__()
        self.channels, self.freq_shift = channels, freq_shift
        self.flip_sin_to_cos = flip_sin_to_cos
        self.linear_1 = linear(channels, dim)
        self.linear_2 = linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        emb = timestep_embedding(
            t, self.channels, self.freq_shift, flip_sin_to_cos=self.flip_sin_to_cos
        ).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(emb)))


class ClassEmbedding(nn.Module):
    """Adds the label's row to the time embedding: (B, D), (B,) or None -> (B, D).

    The last row is the null class, selected by `label=None` or a label below 0, so that one network
    is conditional and unconditional, as classifier-free guidance requires (Ho & Salimans 2022,
    arXiv:2207.12598). Without classes (`num_classes=None`) it has no parameters, and a label is an
    error; without a null class, its absence is one.
    """

    weight: nn.Parameter | None

    def __init__(self, num_classes: int | None, dim: int, *, null_class: bool = True) -> None:
        super().__init__()
        self.null_class = null_class
        if num_classes is not None:
            check_limits("model", num_classes=num_classes)
        count = (num_classes or 0) + null_class
        rows = None if num_classes is None else nn.Parameter(torch.randn(count, dim))
        self.register_parameter("weight", rows)

    def forward(self, emb: Tensor, label: Tensor | None) -> Tensor:
        if self.weight is None:
            require(label is None, "model.num_classes=null: this network takes no labels")
            return emb
        if label is None:
            require(self.null_class, "model.null_class=false: this network needs a label")
            return emb + self.weight[-1]
        if self.null_class:
            label = torch.where(label < 0, len(self.weight) - 1, label)
        return emb + F.embedding(label, self.weight)


class AugmentEmbedding(nn.Module):
    """Adds what was done to the pictures to their embedding: (B, D), (B, A) or None -> (B, D).

    Linear, without bias, and 0 at first, as None is: nothing was done (Karras et al. 2022,
    arXiv:2206.00364, appendix F.2). With `augment_dim=0` it has no parameters.
    """

    weight: nn.Parameter | None

    def __init__(self, augment_dim: int, dim: int) -> None:
        super().__init__()
        weight = nn.Parameter(torch.zeros(dim, augment_dim)) if augment_dim else None
        self.register_parameter("weight", weight)

    def forward(self, emb: Tensor, augment: Tensor | None) -> Tensor:
        if augment is None:
            return emb
        require(
            self.weight is not None,
            "model.augment_dim=0: this network is not conditioned on augmentation",
        )
        assert self.weight is not None
        return emb + F.linear(augment.to(self.weight.dtype), self.weight)


class Conditioned(nn.Module):
    """A network whose layers see t, the label and the augmentation as one embedding."""

    time_embedding: TimeEmbedding
    class_embedding: ClassEmbedding
    augment_embedding: AugmentEmbedding

    def condition(self, t: Tensor, label: Tensor | None, augment: Tensor | None) -> Tensor:
        """t (B,), label (B,), augment (B, A) -> SiLU of the sum of their embeddings, (B, D)."""
        emb = self.class_embedding(self.time_embedding(t), label)
        return F.silu(self.augment_embedding(emb, augment))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v: three (B, heads, N, d) -> the same. Eq. 1, Vaswani et al. 2017."""
    if q.is_cpu and q.shape[-2] <= 64:
        # The fused CPU kernel is optimised for long sequences. Up to 8x8 pixels the formula itself
        # is faster, forward and backward: 1.1 to 2.5 times in float32, 6 to 10 times in bfloat16.
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class SelfAttention(nn.Module):
    """x + out(softmax(q kᵀ / √d) v) over all pixels, pre-normalised: (B, C, H, W) -> the same.

    Vaswani et al. 2017 (arXiv:1706.03762) on pixels, as in Ho et al. 2020, with parameter names of
    diffusers' `Attention`.
    """

    def __init__(self, channels: int, *, num_heads: int, groups: int, eps: float) -> None:
        super().__init__()
        check_multiple(channels, of="num_heads", parts=num_heads)
        self.num_heads = num_heads
        self.group_norm = GroupNorm(groups, channels, eps)
        self.to_q = linear(channels, channels)
        self.to_k = linear(channels, channels)
        self.to_v = linear(channels, channels)
        self.to_out = nn.Sequential(zeroed(nn.Linear(channels, channels)))

    def forward(self, x: Tensor) -> Tensor:
        pixels = rearrange(self.group_norm(x), "b c h w -> b (h w) c")
        q, k, v = (
            rearrange(to(pixels), "b n (heads d) -> b heads n d", heads=self.num_heads)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        y = attention(q, k, v)  # (B, heads, N, d)
        y = self.to_out(rearrange(y, "b heads n d -> b n (heads d)"))  # (B, N, C)
        return x + rearrange(y, "b (h w) c -> b c h w", h=x.shape[2])


def require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def check_image_size(image_size: Size, *, halvings: int, model: str, patch_size: int = 1) -> None:
    """A network that halves n times needs multiples of 2^n pixels, or of 2^n patches."""
    if not isinstance(image_size, int):
        for side in image_size:
            check_image_size(side, halvings=halvings, model=model, patch_size=patch_size)
        return
    factor = patch_size * 2**halvings
    times = "once" if halvings == 1 else f"{halvings} times"
    needs = [f"takes patches of {patch_size}x{patch_size} pixels"] if patch_size > 1 else []
    needs += [f"halves the image {times}"] if halvings else []
    require(
        image_size >= 1 and image_size % factor == 0,
        f"data.image_size={image_size}: model={model} {' and '.join(needs)}, "
        f"so the size must be a multiple of {factor} ({nearest_multiples(image_size, factor)})",
    )


def check_widths(widths: Sequence[int], *, groups: int) -> None:
    """GroupNorm splits every width; the first one also holds pairs of sinusoids, at least two."""
    check_limits("model", widths=list(widths))
    even = widths[0] >= 4 and widths[0] % 2 == 0
    require(even, f"model.widths={list(widths)}: the first must be even, at least 4")
    for width in widths:
        check_multiple(width, of="groups", parts=groups)


def check_multiple(width: int, *, of: str, parts: int) -> None:
    """GroupNorm and attention split the channels into equal parts."""
    check_limits("model", **{of: parts})
    require(
        width % parts == 0,
        f"model.widths: {width} is not a multiple of model.{of}={parts}"
        f" ({nearest_multiples(width, parts)})",
    )


def nearest_multiples(value: int, factor: int) -> str:
    below = max(value, 0) // factor * factor
    return "nearest: " + ", ".join(str(size) for size in (below, below + factor) if size)
