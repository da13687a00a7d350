"""DiT: a transformer on patches with adaLN-Zero (Peebles & Xie 2023)."""

from ddpm.limits.image_size import Size
from ddpm.models.layers import linear
from ddpm.models.transformer_blocks import PatchTransformer, resolve_size


class DiT(PatchTransformer):
    """The diffusion transformer of arXiv:2212.09748, on pixels instead of latents.

    Outputs are those of diffusers' `DiTTransformer2DModel` (norm_eps 1e-6) with the same weights;
    tests/models/test_dit.py holds the mapping. As there, and unlike the authors' code, the lowest
    frequency of t is 1/10000 exactly. The network without classes has no embedding of them.

    Args:
        size: S, B, L or XL, which sets depth, width and num_heads; None: these three are given.
        patch_size: side of a patch, in pixels; 2, 4 and 8 in the paper.
        depth, width, num_heads: replace those of the size, if not None.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        out_channels: int | None = None,
        image_size: Size,
        num_classes: int | None = None,
        size: str | None = "S",
        patch_size: int = 4,
        depth: int | None = None,
        width: int | None = None,
        num_heads: int | None = None,
        augment_dim: int = 0,
    ) -> None:
        depth, width, num_heads = resolve_size(
            size, depth, width, num_heads, image_size=image_size, patch_size=patch_size, model="dit"
        )
        super().__init__(
            linear(channels * patch_size**2, width),
            out_channels=out_channels or channels,
            image_size=image_size,
            num_classes=num_classes,
            patch_size=patch_size,
            depth=depth,
            width=width,
            num_heads=num_heads,
            augment_dim=augment_dim,
        )
