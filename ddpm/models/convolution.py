"""Convolutions with what is added to their results."""

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.models import winograd
from ddpm.models.gpu_kernels import kernels_for
from ddpm.models.group_norm import GroupNorm


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`(x) + plus. On a GPU one kernel adds bias and `plus`, where Triton is there."""

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        kernels = kernels_for(x)
        if kernels and self.bias is not None:
            return kernels.add_bias(self.without_bias(x), self.bias, plus)
        if winograd.is_faster(x, self.weight, self.stride, self.padding):
            y = winograd.conv3x3(x, self.weight)
            y = y if self.bias is None else y + self.bias[:, None, None]
        else:
            y = super().forward(x)
        return y if plus is None else y + plus

    def without_bias(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)


def conv_norm(conv: Conv2d, norm: GroupNorm, x: Tensor, shift: Tensor | None = None) -> Tensor:
    """norm(conv(x) + shift): on a GPU the kernel of the norm adds the bias and the shift.

    Args:
        shift: (C,) or (B, C).
    """
    if kernels_for(x) is None or conv.bias is None:
        return norm(conv(x), shift)
    return norm(conv.without_bias(x), conv.bias if shift is None else conv.bias + shift)
