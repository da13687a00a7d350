"""DDPM experiments: `run.py` on the command line, and the same from Python:

parts = ddpm.compose("model=unet", "data=mnist", "job.max_steps=500")
run = ddpm.train(parts)
images = run.pipeline.sample(16)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddpm.api import Parts, Run, compose, run, train
    from ddpm.pipeline import Pipeline

__all__ = ["Parts", "Pipeline", "Run", "compose", "run", "train"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'ddpm' has no attribute '{name}'")
    # On demand: importing torch takes seconds, `--help` must not.
    module = "ddpm.pipeline" if name == "Pipeline" else "ddpm.api"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
