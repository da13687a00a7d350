"""When the networks of a run are compiled: job.compile=true, false or auto."""

import importlib.util
import shutil

import torch
from torch import nn

PAYS = 600.0  # seconds of training that must be left for compiling, a minute or two, to pay
NEVER = -1  # in place of the step after which a run is compiled


def may_compile(device: torch.device) -> bool:
    """Whether job.compile=auto ever compiles: on a GPU.

    On a CPU it does not. There convolutions take most of a step, and oneDNN computes them with and
    without a compiler.
    """
    return device.type == "cuda"


def pays(seconds_left: float) -> bool:
    """Whether a run is long enough for compiling to pay, and has what that needs."""
    return seconds_left > PAYS and can_compile()


def can_compile() -> bool:
    """Whether a GPU's compiler is there: Triton, and the C compiler that builds its launchers."""
    compilers = ("cc", "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


def compile_networks(*networks: nn.Module, falls_back: bool) -> None:
    """Compile networks when they are next called, in place: names in checkpoints stay as they are.

    Args:
        falls_back: a network that cannot be compiled runs as before, with a warning of PyTorch's.
    """
    import torch._dynamo

    torch._dynamo.config.suppress_errors = falls_back
    for network in networks:
        network.compile()
