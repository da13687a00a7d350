"""GroupNorm with the activation that follows it."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.models import group_norm_cpu
from ddpm.models.gpu_kernels import gpu_kernels, kernels_for

Activation = Literal["none", "silu", "gelu"]
ACTIVATIONS = {"none": lambda u: u, "silu": F.silu, "gelu": F.gelu}


class GroupNorm(nn.GroupNorm):
    """activation(`nn.GroupNorm`(x + shift)): (B, C, H, W) and (B, C), (C,) or None -> (B, C, H, W).

    Wu & He 2018 (arXiv:1803.08494). The result has the dtype of x; statistics are computed in
    float32, of float64 in float64. If Triton works, a GPU does all in one kernel; so does a CPU
    for large images in float32, if a C compiler works.
    """

    def __init__(
        self, groups: int, channels: int, eps: float, activation: Activation = "none"
    ) -> None:
        super().__init__(groups, channels, eps)
        self.activation = activation

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        arguments = x, self.num_groups, self.weight, self.bias, self.eps, self.activation, shift
        if kernels := kernels_for(x):
            return kernels.group_norm(*arguments)
        others = self.weight, self.bias, shift
        if group_norm_cpu.is_faster(x, *others, activation=self.activation):
            return group_norm_cpu.group_norm(*arguments)
        if shift is not None:
            x = (x + shift[..., None, None]).to(x.dtype)
        return ACTIVATIONS[self.activation](self.normalised(x))

    def normalised(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) before the activation, by PyTorch's kernels."""
        if x.is_cpu and x.dtype == torch.bfloat16 and self.num_channels < 16 * self.num_groups:
            # With channels_last, PyTorch's CPU kernel vectorises over the channels of one group.
            # Fewer than 16 do not fill a vector in bfloat16, and it takes 2 to 8 times as long as
            # float32 with both conversions.
            return super().forward(x.float()).to(x.dtype)
        if x.is_cuda and x.dtype != torch.float32 and not torch.compiler.is_compiling():
            # Autocast would write the input and the output in float32. Compiled, it writes neither.
            with torch.autocast("cuda", enabled=False):
                weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
                return F.group_norm(x, self.num_groups, weight, bias, self.eps)
        return super().forward(x).to(x.dtype)


def runs_own_kernels(network: nn.Module, device: torch.device) -> bool:
    """Whether a network normalises by this program's GPU kernels on a device."""
    norms = any(isinstance(module, GroupNorm) for module in network.modules())
    return device.type == "cuda" and norms and gpu_kernels(device) is not None
