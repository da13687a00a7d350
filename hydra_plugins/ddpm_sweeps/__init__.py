"""Hydra's plugins for sweeps. The code is in ddpm/runner/sweeps, imported when a sweep begins."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _Frozen(Launcher):
    """Composes all jobs first, and then has them run.

    Args:
        knobs: of this launcher; those that only others have are left aside.
    """

    name: str  # of its file in conf/hydra/launcher

    def __init__(self, **knobs: Any) -> None:
        self.given = knobs

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from ddpm.runner.sweeps.launchers import base

        self.hydra_context, self.config = hydra_context, config
        self.knobs = base.own_knobs(self.name, self.given, config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from ddpm.runner.sweeps.launchers import base

        return base.launch(
            self.run, self.config, self.hydra_context, job_overrides, initial_job_idx
        )

    def run(self, queue: Any) -> None:
        """Run the jobs of a `Queue`."""
        raise NotImplementedError


class Serial(_Frozen):
    """`hydra/launcher=serial`, the default."""

    name = "serial"

    def run(self, queue: Any) -> None:
        from ddpm.runner.sweeps.launchers import serial

        serial.run(queue)


class Slots(_Frozen):
    """`hydra/launcher=slots`; its settings are the arguments of `launchers/devices.py: find`."""

    name = "slots"

    def run(self, queue: Any) -> None:
        from pathlib import Path

        from ddpm.runner.sweeps.launchers import devices, scheduler, slots

        found = devices.find(**self.knobs)
        scheduler.run(queue, slots.Slots(found, Path(self.config.hydra.sweep.dir)))


class Slurm(_Frozen):
    """`hydra/launcher=slurm`; its settings are the arguments of `launchers/slurm.py: Slurm`."""

    name = "slurm"

    def run(self, queue: Any) -> None:
        from pathlib import Path

        from ddpm.runner.sweeps.launchers import scheduler

        slurm = _extra(
            "ddpm.runner.sweeps.launchers.slurm", "submitit", "hydra/launcher=slurm", "slurm"
        )
        sweep = Path(self.config.hydra.sweep.dir)
        scheduler.run(queue, slurm.Slurm(sweep, **self.knobs))


class Optuna(Sweeper):
    """`hydra/sweeper=optuna`; its settings are the arguments of `optuna_search.search`."""

    def __init__(self, **knobs: Any) -> None:
        self.knobs = knobs

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        search = _extra(
            "ddpm.runner.sweeps.search.optuna_search", "optuna", "hydra/sweeper=optuna", "optuna"
        )
        search.search(
            self.launcher, self.config, self.hydra_context, arguments, **_plain(self.knobs)
        )


def _plain(knobs: dict[str, Any]) -> dict[str, Any]:
    """The knobs without Hydra's own kinds of lists and dicts."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.create(knobs), resolve=True)


def _extra(module: str, library: str, chosen: str, extra: str) -> Any:
    """A module of ours that needs a library which not everybody has.

    Raises:
        InputError: it is not installed.
    """
    import importlib

    from ddpm.errors import InputError

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise InputError(
            f"{chosen}: needs {library}. `pip install 'hydra-ddpm[{extra}]'` brings it, in a "
            f"checkout `pip install -e '.[{extra}]'`."
        ) from None
