"""DDPM experiments: `from ddpm import Pipeline` samples from a run; `run.py` does the rest."""

__all__ = ["Pipeline"]


def __getattr__(name: str) -> object:
    if name == "Pipeline":  # on demand: importing torch takes seconds, `--help` must not
        from ddpm.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'ddpm' has no attribute '{name}'")
