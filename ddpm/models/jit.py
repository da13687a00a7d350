"""JiT: a transformer on large patches that predicts the image (Li & He 2025)."""

from typing import Any

from torch import nn

from ddpm.limits.parts import check_limits
from ddpm.models.layers import linear, variance_scaling
from ddpm.models.transformer_blocks import PatchTransformer


class JiT(PatchTransformer):
    """The "Just image Transformer" of "Back to Basics: Let Denoising Generative Models Denoise"
    (arXiv:2511.13720), with the blocks of `dit`.

    A large patch has more pixels than the network has room for, which is no harm as long as the
    output is an image: natural patches need few dimensions, noise needs all of them. So it is meant
    for objective=x_0; with eps or v the paper reports failure at large patches.

    Taken from the paper: large patches, the bottleneck of their embedding (no bias in its first
    layer; 128 dimensions for B and L), x_0 as the output, adaLN-Zero, sizes B, L and H. Not taken:
    SwiGLU, RMSNorm, normalised queries and keys, rotary positions, class tokens in the sequence
    (here all as in DiT), and its training (loss in v, logit-normal t). So published weights do not
    fit, and published figures say little about this network.

    Args:
        size: B, L or H, or one of DiT's; it sets depth, width and num_heads; None: these are given.
        patch_size: side of a patch, in pixels; the paper's patches are a sixteenth of the image.
        bottleneck: dimensions that a patch is projected to before it becomes a token.
        others: see `PatchTransformer`.
    """

    option = "jit"

    def __init__(
        self,
        *,
        size: str | None = "B",
        patch_size: int = 8,
        bottleneck: int = 128,
        **others: Any,
    ) -> None:
        check_limits("model", bottleneck=bottleneck)
        self.bottleneck = bottleneck
        super().__init__(size=size, patch_size=patch_size, **others)

    def embedding(self, pixels: int, width: int) -> nn.Module:
        narrow = variance_scaling(nn.Linear(pixels, self.bottleneck, bias=False))
        return nn.Sequential(narrow, linear(self.bottleneck, width))
