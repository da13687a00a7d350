"""A convolution that adds a residual to its result."""

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.models import winograd
from ddpm.models.gpu_kernels import kernels_for
from ddpm.models.group_norm import GroupNorm


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`(x) + plus, where `plus` has the shape of the result. If Triton works, a GPU adds
    the bias and `plus` in one kernel; large convolutions in float32 run faster on a CPU, too."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        kernels = kernels_for(x)
        if kernels and self.bias is not None:
            return kernels.add_bias(self.without_bias(x), self.bias, plus)
        if winograd.is_faster(x, self.weight, self.stride, self.padding):
            return winograd.conv2d(x, self.weight, self.bias, plus)
        y = super().forward(x)
        return y if plus is None else y + plus

    def without_bias(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding)


def conv_norm(conv: Conv2d, norm: GroupNorm, x: Tensor, shift: Tensor | None = None) -> Tensor:
    """norm(conv(x) + shift): on a GPU the kernel of the norm adds the bias, too.

    Args:
        shift: (C,) or (B, C).
    """
    if kernels_for(x) is None or conv.bias is None:
        return norm(conv(x), shift)
    return norm(conv.without_bias(x), conv.bias if shift is None else conv.bias + shift)
