"""Starting without torch.compile: an eager run imports nothing of the compiler.

`import torch` leaves `torch._dynamo` out, which takes as long again. But lightning_fabric imports
it for one class, and each optimizer of `torch.optim` to shield its methods from a compiler that an
eager run never starts. Both can do without; where PyTorch has changed and they cannot, the compiler
is imported as usual, and only the time is lost.
"""

import inspect
import sys
from types import ModuleType

import torch
from torch import nn

COMPILER = "torch._dynamo"


def import_fabric() -> None:
    """Import lightning_fabric without `torch._dynamo`, unless that is imported already.

    Fabric wants `OptimizedModule`, the class of what `torch.compile(module)` returns, in order to
    look inside. No network of ours is one: they are compiled in place, by `module.compile()`.
    """
    if COMPILER in sys.modules or "lightning_fabric" in sys.modules:
        return
    stand_in = ModuleType(COMPILER)
    stand_in.OptimizedModule = type("OptimizedModule", (nn.Module,), {})  # type: ignore[attr-defined]
    sys.modules[COMPILER] = stand_in
    try:
        import lightning_fabric  # noqa: F401
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]


def shield_optimizers() -> None:
    """Tell PyTorch that the methods of its optimizers are shielded from the compiler already.

    `torch._compile._disable_dynamo` keeps the shielded method in this attribute of the plain one.
    """
    if COMPILER in sys.modules:
        return
    for method in vars(torch.optim.Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            plain.__dynamo_disable = plain


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()`; one of PyTorch's own, past the wrapper that imports the compiler.

    That wrapper calls the optimizer's hooks, too: one that has hooks gets it.
    """
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    is_own = type(optimizer).__module__.startswith("torch.optim.")
    if not is_own or any(hooks) or optimizer.defaults.get("differentiable"):
        optimizer.step()
        return
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)
