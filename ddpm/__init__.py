"""DDPM experiments: `run.py` on the command line, and the same from Python:

parts = ddpm.compose("model=unet", "data=mnist", "job.max_steps=500")
run = ddpm.train(parts)
images = run.pipeline.sample(16)
"""

import os

if os.name == "nt":
    raise ImportError("hydra-ddpm needs Linux: on Windows, run it in the subsystem WSL2.")

TYPE_CHECKING = False  # true to type checkers; importing typing would take as long as all of this

if TYPE_CHECKING:
    from ddpm.pipeline import Pipeline
    from ddpm.runner.api import Parts, Run, compose, run, train

__all__ = ["Parts", "Pipeline", "Run", "compose", "run", "train"]


def __getattr__(name: str) -> object:
    if name == "Pipeline":  # on demand: importing torch takes seconds, `--help` must not
        from ddpm.pipeline import Pipeline

        return Pipeline
    if name in __all__:
        from ddpm.runner import api

        return getattr(api, name)
    raise AttributeError(f"module 'ddpm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
