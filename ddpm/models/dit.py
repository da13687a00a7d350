"""DiT: a transformer on patches with adaLN-Zero (Peebles & Xie 2023)."""

from typing import Any

from torch import nn

from ddpm.models.layers import linear
from ddpm.models.transformer_blocks import PatchTransformer


class DiT(PatchTransformer):
    """The diffusion transformer of arXiv:2212.09748, on pixels instead of latents.

    Outputs are those of diffusers' `DiTTransformer2DModel` (norm_eps 1e-6) with the same weights;
    tests/models/test_dit.py holds the mapping. As there, and unlike the authors' code, the lowest
    frequency of t is 1/10000 exactly. The network without classes has no embedding of them.

    Args:
        size: S, B, L or XL, which sets depth, width and num_heads; None: these three are given.
        patch_size: side of a patch, in pixels; 2, 4 and 8 in the paper.
        others: see `PatchTransformer`.
    """

    option = "dit"

    def __init__(self, *, size: str | None = "S", patch_size: int = 4, **others: Any) -> None:
        super().__init__(size=size, patch_size=patch_size, **others)

    def embedding(self, pixels: int, width: int) -> nn.Module:
        return linear(pixels, width)
