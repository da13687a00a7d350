"""GroupNorm with the activation that follows it."""

import functools
import importlib.util
import logging
import shutil
from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

Activation = Literal["none", "silu", "gelu"]
ACTIVATIONS = {"none": lambda u: u, "silu": F.silu, "gelu": F.gelu}

logger = logging.getLogger(__name__)


class GroupNorm(nn.GroupNorm):
    """activation(`nn.GroupNorm`(x)) (Wu & He 2018, arXiv:1803.08494): (B, C, H, W) -> the same.

    Statistics are computed in float32, and the result has the dtype of the input. On a GPU one
    kernel does both, where Triton is there; else PyTorch's slowest kernels are avoided.
    """

    def __init__(
        self, groups: int, channels: int, eps: float, activation: Activation = "none"
    ) -> None:
        super().__init__(groups, channels, eps)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        fits = x.is_cuda and x.dtype != torch.float64 and not torch.compiler.is_compiling()
        if fits and (kernels := gpu_kernels(x.device)):
            return kernels.group_norm(
                x, self.num_groups, self.weight, self.bias, self.eps, self.activation
            )
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


def has_gpu_compiler() -> bool:
    """Whether the compiler for GPUs is there: Triton, and the C compiler for its launchers."""
    compilers = ("cc", "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


@functools.cache
def gpu_kernels(device: torch.device) -> ModuleType | None:
    """`group_norm_triton`, or None where it does not work: tried once, on a small tensor."""
    if not has_gpu_compiler():
        return None
    try:
        with _disable_current_modes():  # fake tensors, and counters of memory and FLOP
            from ddpm.models import group_norm_triton

            x = torch.ones(1, 4, 2, 2, device=device)
            group_norm_triton.group_norm(x, 2, x[0, :, 0, 0], x[0, :, 0, 0], 1e-5, "silu").cpu()
    except Exception as error:  # of Triton, its driver or the C compiler: they have many
        logger.warning(
            "Triton is installed and does not work here, so GroupNorm takes PyTorch's slower "
            "kernels (%s: %s)",
            type(error).__name__,
            str(error).strip().partition("\n")[0],
        )
        return None
    return group_norm_triton
