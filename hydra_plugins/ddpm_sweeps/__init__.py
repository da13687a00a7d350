"""Hydra's plugins for sweeps. Hydra imports them at every start, so they import the code, in
ddpm/runner/sweeps, only when a sweep begins."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


def _features_of(job: str, data: str) -> str:
    from ddpm.runner.config import catalog

    return catalog.features_of(job, data)


OmegaConf.register_new_resolver("features_of", _features_of, replace=True)  # in conf/config.yaml


class _Launcher(Launcher):
    """Composes all jobs, and then lets its runner run them.

    Args:
        settings: those that only other launchers have are ignored.
    """

    name: str  # of its file in conf/hydra/launcher

    def __init__(self, **settings: Any) -> None:
        self.all_settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from ddpm.runner.sweeps.launchers import base

        self.hydra_context, self.config = hydra_context, config
        self.settings = base.own_settings(self.name, self.all_settings, config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from ddpm.runner.sweeps.launchers import base

        return base.launch(
            self.runner(), self.config, self.hydra_context, job_overrides, initial_job_idx
        )

    def runner(self) -> Any:
        """A `launchers/job_queue.py: Runner`."""
        raise NotImplementedError

    @property
    def sweep(self) -> Path:
        return Path(self.config.hydra.sweep.dir)


class Serial(_Launcher):
    """`hydra/launcher=serial`, the default."""

    name = "serial"

    def runner(self) -> Any:
        from ddpm.runner.sweeps.launchers import job_queue

        return job_queue.Serial()


class Slots(_Launcher):
    """`hydra/launcher=slots`; its settings are the arguments of `devices.find_slots`."""

    name = "slots"

    def runner(self) -> Any:
        from ddpm.runner.sweeps.launchers import slots

        return slots.Slots(self.sweep, **self.settings)


class Slurm(_Launcher):
    """`hydra/launcher=slurm`; its settings are the arguments of `slurm.Slurm`."""

    name = "slurm"

    def runner(self) -> Any:
        slurm = _import("launchers.slurm", "submitit", "hydra/launcher=slurm", "slurm")
        return slurm.Slurm(self.sweep, **self.settings)


class Optuna(Sweeper):
    """`hydra/sweeper=optuna`; its settings are the arguments of `optuna_search.search`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from ddpm.runner.sweeps.launchers import base

        module = _import("search.optuna_search", "optuna", "hydra/sweeper=optuna", "optuna")
        settings = base.plain_settings(self.settings)
        create_runner = getattr(self.launcher, "runner", None)  # third-party launchers have none
        runner = None if create_runner is None else create_runner()
        module.search(runner, self.config, self.hydra_context, arguments, **settings)


def _import(module: str, library: str, choice: str, extra: str) -> Any:
    """A module of ddpm/runner/sweeps that needs an optional library.

    Raises:
        InputError: the library is not installed.
    """
    from ddpm.errors import InputError

    try:
        return importlib.import_module(f"ddpm.runner.sweeps.{module}")
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise InputError(
            f"{choice}: needs {library}. Install it by `pip install -e '.[{extra}]'`, in a "
            f"checkout by `pip install -e '.[{extra}]'`."
        ) from None
