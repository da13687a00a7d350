"""When the networks of a run are compiled: job.compile=true, false or auto."""

import torch
from torch import nn

from ddpm.models.gpu_kernels import has_gpu_compiler
from ddpm.models.group_norm import runs_own_kernels
from ddpm.runner.distributed.fabric import check_compiler
from ddpm.runner.execution.run import Run

MIN_SECONDS = 600.0  # compile only if more time in training remains; it takes one or two minutes
NEVER = -1  # instead of the step after which a run is compiled


class Compilation:
    """Compiles the networks of a run, from the start or later.

    With "auto" this is decided once, when the time left in training is known, and recorded: a
    resumed run is compiled after the same step as before. Networks with this program's `GroupNorm`
    are not: their own kernels and a replayed step are faster (docs/performance.md).

    Args:
        mode: true, false or "auto".
    """

    def __init__(self, mode: bool | str) -> None:
        self.auto = mode == "auto"
        self.compiled = mode is True
        self.after: int | None = None  # with auto, the step; None: not decided yet

    def resume(self, run: Run, start: int) -> None:
        """With auto, repeat the decision of a run that resumes at step `start`."""
        if not self.auto or not may_compile(run.fabric.device):
            return
        self.after = run.recorded_choice("compile_after")
        if self.after is not None:
            run.record_choice(compile_after=self.after)
            self.compiled = 0 < self.after <= start and has_gpu_compiler()

    def at_start(self, device: torch.device, *networks: nn.Module) -> None:
        """Compile the networks now, if they are to be compiled from the start."""
        if self.compiled and not self.auto:
            check_compiler(device)
        if self.compiled:
            compile_networks(*networks, fallback=self.auto)

    def after_step(
        self, run: Run, done: int, seconds_left: float | None, *networks: nn.Module
    ) -> bool:
        """With auto, compile the networks for the following steps if it is time; return whether.

        Args:
            done: the number of steps done.
            seconds_left: in training; None: not known yet.
        """
        if not self.auto or self.compiled or not may_compile(run.fabric.device):
            return False
        if self.after is None and seconds_left is not None:
            device = run.fabric.device
            pays = pays_off(seconds_left) and not runs_own_kernels(networks[0], device)
            self.after = run.fabric.broadcast(done if pays else NEVER)
            run.record_choice(compile_after=self.after)
            run.note(chosen=run.choices)
        if done != self.after or not has_gpu_compiler():
            return False
        compile_networks(*networks, fallback=True)
        self.compiled = True
        return True


def may_compile(device: torch.device) -> bool:
    """Whether job.compile=auto ever compiles: on a GPU.

    On a CPU convolutions take most of a step, and oneDNN computes them with and without a compiler.
    """
    return device.type == "cuda"


def pays_off(seconds_left: float) -> bool:
    """Whether a run is long enough for compiling to pay off, and the compiler is available."""
    return seconds_left > MIN_SECONDS and has_gpu_compiler()


def compile_networks(*networks: nn.Module, fallback: bool) -> None:
    """Compile networks at their next call, in place: names in checkpoints stay as they are.

    Args:
        fallback: run a network that cannot be compiled uncompiled, with a warning by PyTorch.
    """
    import torch._dynamo

    torch._dynamo.config.suppress_errors = fallback
    for network in networks:
        network.compile()
