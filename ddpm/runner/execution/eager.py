"""Start eager runs faster: do not import the compiler of `torch.compile`.

`import torch` does not import `torch._dynamo`, which would double its time. But lightning_fabric
imports it for one class, and the optimizers of `torch.optim` to exclude their methods from
compilation. Eager runs need neither. If a new version of PyTorch breaks these workarounds, the
compiler is imported as usual and only the time is lost.
"""

import inspect
import sys
from types import ModuleType

import torch
from torch import nn

COMPILER = "torch._dynamo"


def import_fabric() -> None:
    """Import lightning_fabric without `torch._dynamo`, unless that is imported already.

    Fabric uses `OptimizedModule`, the class of the modules that `torch.compile(module)` returns.
    Our networks are never instances of it: `module.compile()` compiles them in place.
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
    """Mark the methods of PyTorch's optimizers as already excluded from compilation.

    `torch._compile._disable_dynamo` keeps the excluded method in this attribute of the plain one.
    """
    if COMPILER in sys.modules:
        return
    for method in vars(torch.optim.Optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            plain.__dynamo_disable = plain


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()`, without the wrapper that imports the compiler if PyTorch defines it.

    That wrapper also calls the optimizer's hooks, so it is kept for an optimizer with hooks.
    """
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    is_own = type(optimizer).__module__.startswith("torch.optim.")
    if not is_own or any(hooks) or optimizer.defaults.get("differentiable"):
        optimizer.step()
        return
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)
