"""The augmentation of Karras et al. 2022 (arXiv:2206.00364), appendix F.2.

Each picture is transformed at random, and the network is conditioned on the parameters of the
transformation. Samples are drawn with all parameters 0, no transformation, and so look like the
pictures of the data set. After StyleGAN2-ADA (Karras et al. 2020, arXiv:2006.06676).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm.errors import InputError
from ddpm.limits.parts import check_limits

GEOMETRY, COLOR = 9, 6  # numbers that describe a transformation
SCALE = 0.2  # standard deviation of log2 of a scaling
SHIFT = 0.125  # of a shift, as a share of the side
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0  # the last two of log2


class EDM:
    """Flips, scaling, rotation, stretching and shifts; with `color` also brightness, contrast,
    inverted luma, hue and saturation.

    Pictures are resampled by bicubic interpolation and mirrored at their edges (EDM: a wavelet
    filter at twice the size).

    Args:
        probability: of each transformation. Horizontal mirroring happens to half of the pictures
            whatever it is, unless it is 0.
        color: EDM's published runs leave it out.
        dim: number of parameters that the network gets: 9 for geometry, 6 for colour.
    """

    def __init__(
        self, *, probability: float = 0.12, color: bool = False, dim: int = GEOMETRY + COLOR
    ) -> None:
        check_limits("augment", probability=probability)
        if dim != GEOMETRY + COLOR:
            raise InputError(f"augment.dim={dim}: is {GEOMETRY + COLOR}; leave it out.")
        self.probability, self.color, self.dim = probability, color, dim

    def __call__(
        self, x_0: Tensor, generator: torch.Generator, rows: slice, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """x_0 (B, C, H, W), float32, transformed, and what was done to each picture: (B, dim).

        Numbers are drawn for the global batch of `batch_size`, of which x_0 is the `rows`. Pictures
        to which nothing is done stay the same to the bit, and their numbers are 0.
        """
        shape, device = (batch_size, 12), x_0.device
        chance = torch.rand(shape, generator=generator, device=device)[rows]
        uniform = torch.rand(shape, generator=generator, device=device)[rows]
        normal = torch.randn(shape, generator=generator, device=device)[rows]
        applied = (chance < self.probability).float()
        coin = (uniform < 0.5).float()
        angle = (2 * uniform - 1) * math.pi

        x_flip = coin[:, 0] * float(self.probability > 0)
        y_flip = coin[:, 1] * applied[:, 1]
        scale = normal[:, 2] * applied[:, 2]
        turn = angle[:, 3] * applied[:, 3]
        stretch, axis = normal[:, 4] * applied[:, 4], angle[:, 4] * applied[:, 4]
        shift = normal[:, 5:7] * applied[:, 5:6]
        condition = [x_flip, y_flip, scale, turn.cos() - 1, turn.sin()]
        condition += [stretch * axis.cos(), stretch * axis.sin(), *shift.unbind(1)]
        x_0 = torch.where(x_flip.bool()[:, None, None, None], x_0.flip(-1), x_0)
        x_0 = torch.where(y_flip.bool()[:, None, None, None], x_0.flip(-2), x_0)
        x_0 = warp(x_0, scale, turn, stretch, axis, shift)

        channels = x_0.shape[1]  # grey has no saturation, and only three channels have a hue
        on = applied[:, 7:] * float(self.color)
        brightness, contrast = normal[:, 7] * on[:, 0], normal[:, 8] * on[:, 1]
        luma, hue = coin[:, 9] * on[:, 2], angle[:, 10] * on[:, 3] * float(channels == 3)
        saturation = normal[:, 11] * on[:, 4] * float(channels > 1)
        condition += [brightness, contrast, luma, hue.cos() - 1, hue.sin(), saturation]
        if self.color:
            x_0 = recolor(x_0, brightness, contrast, luma, hue, saturation)
        return x_0, torch.stack(condition, dim=1)


def warp(
    x_0: Tensor, scale: Tensor, turn: Tensor, stretch: Tensor, axis: Tensor, shift: Tensor
) -> Tensor:
    """Pictures (B, C, H, W) scaled by 2^(0.2 scale), turned counter-clockwise by `turn`, stretched
    by 2^(0.2 stretch) along `axis`, and shifted by shift (B, 2) eighths of width and height."""
    height, width = x_0.shape[-2:]
    s = torch.exp2(SCALE * scale)
    # From an output position to the input position, in pixels from the centre: the inverses of all
    # transformations, in reverse order.
    inverse = rotation(axis) @ torch.diag_embed(
        torch.exp2(torch.stack([-SCALE * stretch, SCALE * stretch], dim=1))
    )
    inverse = rotation(turn) @ inverse @ rotation(-axis) / s[:, None, None]
    # Constants are filled in on the device: copying them there would make the host wait for it.
    side = torch.stack([scale.new_full((), width), scale.new_full((), height)])
    moved = (inverse @ (SHIFT * shift * side)[..., None])[..., 0]
    theta = torch.cat([inverse * side / side[:, None], (-2 * moved / side)[..., None]], dim=2)
    grid = F.affine_grid(theta, list(x_0.shape), align_corners=False)
    warped = F.grid_sample(
        x_0, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    changed = (scale != 0) | (turn != 0) | (stretch != 0) | (shift != 0).any(1)
    return torch.where(changed[:, None, None, None], warped, x_0)


def rotation(angle: Tensor) -> Tensor:
    """(B,) -> (B, 2, 2); image coordinates, whose y points down."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def recolor(
    x_0: Tensor, brightness: Tensor, contrast: Tensor, luma: Tensor, hue: Tensor, saturation: Tensor
) -> Tensor:
    """Pictures (B, C, H, W) made brighter by 0.2 brightness and of 2^(0.5 contrast) times the
    contrast, with inverted luma where that is 1, their hue turned, and of 2^saturation times the
    saturation. Hue is that of three channels."""
    channels = x_0.shape[1]
    luma_part = torch.full((channels, channels), 1 / channels, device=x_0.device)
    colour_part = torch.eye(channels, device=x_0.device) - luma_part

    def each(values: Tensor) -> Tensor:
        return values[:, None, None]

    matrix = each(torch.exp2(CONTRAST * contrast)) * (colour_part + luma_part * each(1 - 2 * luma))
    if channels == 3:
        cycle = torch.eye(3, device=x_0.device).roll(1, 0)
        turned = (cycle - cycle.T) / math.sqrt(3)  # the cross product with the grey axis
        turn = luma_part + colour_part * each(hue.cos()) + turned * each(hue.sin())
        matrix = turn @ matrix
    matrix = (luma_part + colour_part * each(torch.exp2(SATURATION * saturation))) @ matrix
    offset = (matrix @ torch.ones(channels, 1, device=x_0.device)) * each(BRIGHTNESS * brightness)
    changed = (brightness != 0) | (contrast != 0) | (luma != 0) | (hue != 0) | (saturation != 0)
    recoloured = torch.einsum("bij,bjhw->bihw", matrix, x_0) + offset[..., None]
    return torch.where(changed[:, None, None, None], recoloured, x_0)
