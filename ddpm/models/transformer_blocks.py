"""The vision transformer with adaptive layer norm that `dit` and `jit` are made of.

Peebles & Xie 2023, "Scalable Diffusion Models with Transformers" (arXiv:2212.09748), section 3.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm.limits.image_size import Size, sides
from ddpm.limits.parts import check_limits
from ddpm.models.layers import (
    AugmentEmbedding,
    ClassEmbedding,
    Conditioned,
    TimeEmbedding,
    attention,
    check_image_size,
    linear,
    nearest_multiples,
    require,
    zeroed,
)

# Name: (depth, width, num_heads). S to XL: table 1 of Peebles & Xie. H: of Li & He 2025.
SIZES = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
    "H": (32, 1280, 16),
}
FREQUENCIES = 256  # sines and cosines of t
EPS = 1e-6  # of every layer norm


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm whose shift and scale, (B, D), depend on t and the label: (B, N, D) -> same."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale[:, None]) + shift[:, None]


def sine_positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed embeddings of the patches' places, (rows x columns, width), float32.

    The first half says the column, the second the row: sines, then cosines, of the frequencies
    10000^(-k / (width / 4)), as in the code of Peebles & Xie.
    """
    k = torch.arange(width // 4, dtype=torch.float64)
    freq = 10000 ** (-k / (width // 4))

    def embedded(place: Tensor) -> Tensor:
        angle = place.flatten()[:, None] * freq
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    places = (torch.arange(n, dtype=torch.float64) for n in (rows, columns))
    row, column = torch.meshgrid(*places, indexing="ij")
    return torch.cat([embedded(column), embedded(row)], dim=1).float()


class Block(nn.Module):
    """Self-attention, then a perceptron on each token, both residual, with adaLN-Zero: shift, scale
    and gate come from the embedding, and all gates are 0 until trained."""

    def __init__(self, width: int, *, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        hidden = round(mlp_ratio * width)
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.to_qkv = linear(width, 3 * width)
        self.to_out = linear(width, width)
        self.linear_1 = linear(width, hidden)
        self.linear_2 = linear(hidden, width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, N, D), emb (B, D) -> (B, N, D)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(emb).chunk(6, dim=1)
        x = x + gate_1[:, None] * self.attend(modulate(x, shift_1, scale_1))
        y = F.gelu(self.linear_1(modulate(x, shift_2, scale_2)), approximate="tanh")
        return x + gate_2[:, None] * self.linear_2(y)

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over all tokens: (B, N, D) -> the same."""
        parts = "b n (qkv heads d) -> qkv b heads n d"
        q, k, v = rearrange(self.to_qkv(x), parts, qkv=3, heads=self.num_heads)
        return self.to_out(rearrange(attention(q, k, v), "b heads n d -> b n (heads d)"))


class PatchTransformer(Conditioned, ABC):
    """A transformer on square patches of an image.

    Args:
        channels, out_channels: of the image and of the output; None: as many.
        image_size: side of the image, or (height, width), in pixels.
        num_classes: number of classes; None: it takes no labels.
        size: S, B, L, XL or H, which sets depth, width and num_heads; None: these are given.
        patch_size: side of a patch, in pixels.
        depth, width, num_heads: of the blocks; they replace those of the size, if not None.
        augment_dim: length of the vector that describes the augmentation; 0: there is none.

    Raises:
        InputError: see `resolve_size`.
    """

    recomputable = (Block,)
    option: str  # of the group model, for messages

    def __init__(
        self,
        *,
        channels: int = 3,
        out_channels: int | None = None,
        image_size: Size,
        num_classes: int | None = None,
        size: str | None,
        patch_size: int,
        depth: int | None = None,
        width: int | None = None,
        num_heads: int | None = None,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        own = {"depth": depth, "width": width, "num_heads": num_heads}
        depth, width, num_heads = resolve_size(size, own, image_size, patch_size, self.option)
        self.patch_size = patch_size
        self.embed = self.embedding(channels * patch_size**2, width)
        rows, columns = (side // patch_size for side in sides(image_size))
        self.register_buffer("positions", sine_positions(rows, columns, width), persistent=False)
        self.time_embedding = TimeEmbedding(FREQUENCIES, width)
        self.class_embedding = ClassEmbedding(num_classes, width)
        self.augment_embedding = AugmentEmbedding(augment_dim, width)
        self.blocks = nn.ModuleList(Block(width, num_heads=num_heads) for _ in range(depth))
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.head = zeroed(nn.Linear(width, (out_channels or channels) * patch_size**2))
        for weight in (
            self.time_embedding.linear_1.weight,
            self.time_embedding.linear_2.weight,
            *self.class_embedding.parameters(),
        ):
            nn.init.normal_(weight, std=0.02)

    @abstractmethod
    def embedding(self, pixels: int, width: int) -> nn.Module:
        """From patches (B, N, pixels), with the values of all channels, to tokens (B, N, width)."""

    def forward(
        self, x_t: Tensor, t: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """x_t (B, C, H, W), t (B,), label (B,), augment (B, A) -> (B, C_out, H, W)."""
        p = self.patch_size
        emb = self.condition(t, label, augment)  # (B, D)
        x = self.embed(rearrange(x_t, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p))
        x = x + self.positions  # (B, N, D)
        for block in self.blocks:
            x = block(x, emb)
        x = self.head(modulate(x, *self.modulation(emb).chunk(2, dim=1)))  # (B, N, p p C_out)
        rows = x_t.shape[2] // p
        y = rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=rows, p=p, q=p)
        return y.permute(0, 3, 1, 2)  # channels_last


def resolve_size(
    size: str | None, own: dict[str, int | None], image_size: Size, patch_size: int, model: str
) -> tuple[int, int, int]:
    """Depth, width and heads of a size, each replaced by its `own` key if that is not None.

    Raises:
        InputError: one of them is missing, or they do not fit each other or the image.
    """
    check_limits("model", size=size)
    of_size = dict(zip(own, SIZES[size], strict=True)) if size else {}
    chosen = of_size | {key: value for key, value in own.items() if value is not None}
    missing = [f"model.{key}" for key in own if key not in chosen]
    require(not missing, f"{', '.join(missing)}: must be set, as model.size=null")
    check_limits("model", **chosen, patch_size=patch_size)
    check_image_size(image_size, halvings=0, model=model, patch_size=patch_size)
    depth, width, heads = chosen["depth"], chosen["width"], chosen["num_heads"]
    require(
        width % 4 == 0,
        f"model.width={width}: must be a multiple of 4, for the places of the patches"
        f" ({nearest_multiples(width, 4)})",
    )
    require(
        width % heads == 0,
        f"model.width={width}: not a multiple of model.num_heads={heads}"
        f" ({nearest_multiples(width, heads)})",
    )
    return depth, width, heads
