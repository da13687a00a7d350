"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193): features of photographs, learned without labels."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.errors import InputError
from ddpm.features import files
from ddpm.features.network import NetworkFeatures
from ddpm.limits.parts import check_limits

# width, depth and heads of the networks
ARCHITECTURES = {"vits14": (384, 12, 6), "vitb14": (768, 12, 12), "vitl14": (1024, 24, 16)}
# SHA-256 of the files that Meta published as dinov2_<arch>_pretrain.pth
PUBLISHED = {
    "vits14": "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    "vitb14": "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    "vitl14": "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
}
PATCH, TRAINED = 14, 37  # pixels, and patches along the sides of the pictures it was trained on
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class DINOv2(NetworkFeatures):
    """The normalised class token.

    Args:
        weights: dinov2_<arch>_pretrain.pth, or a safetensors file of its tensors and names.
        arch: vits14, vitb14 or vitl14.

    Raises:
        InputError: the file is missing or another one.
    """

    layer = "class token"
    size = 224
    colour = True
    batch = 32

    def __init__(self, *, weights: str | None = None, arch: str = "vitl14") -> None:
        check_limits("features", arch=arch)
        remedy = (
            f"The file is dinov2_{arch}_pretrain.pth, from github.com/facebookresearch/dinov2, or "
            "a safetensors file of the same tensors."
        )
        if weights is None:
            raise InputError(f"features.weights: features=dinov2 needs a file.\n{remedy}")
        path = Path(weights).expanduser()
        expected = None if path.suffix == ".safetensors" else PUBLISHED[arch]
        tensors, digest = files.read(path, expected, remedy)
        net = VisionTransformer(*ARCHITECTURES[arch])
        files.fill(net, tensors, f"DINOv2 {arch}")
        super().__init__(net, digest)
        self.name = f"dinov2_{arch}"


class VisionTransformer(nn.Module):
    """The network, with the names of the file's tensors."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, stride=PATCH)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of the training
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TRAINED**2, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) of values from 0 to 255 -> (B, width)."""
        mean, std = (pixels.new_tensor(v)[:, None, None] * 255 for v in (MEAN, STD))
        patches = self.patch_embed["proj"]((pixels - mean) / std)  # (B, width, H / 14, W / 14)
        x = patches.flatten(2).transpose(1, 2) + self._positions(patches.shape[2], patches.shape[3])
        x = torch.cat(((self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])

    def _positions(self, height: int, width: int) -> Tensor:
        """Positions of a grid of patches: (1, height * width, width of the network)."""
        grid = self.pos_embed[:, 1:].unflatten(1, (TRAINED, TRAINED)).permute(0, 3, 1, 2)
        if (height, width) != (TRAINED, TRAINED):
            # The published code adds 0.1 to the sides, which shifts the positions a little.
            scale = (height + 0.1) / TRAINED, (width + 0.1) / TRAINED
            grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return grid.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and a hidden layer, each normalised before and scaled behind."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        shapes = {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        self.attn = nn.ModuleDict(shapes)
        hidden = {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        self.mlp = nn.ModuleDict(hidden)
        self.ls1, self.ls2 = (
            nn.ParameterDict({"gamma": nn.Parameter(torch.ones(width))}) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, tokens, width / heads)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.ls1["gamma"] * self.attn["proj"](h)
        h = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return x + self.ls2["gamma"] * h
