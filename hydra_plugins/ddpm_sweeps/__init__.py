"""What Hydra knows of how sweeps run. All of it is in ddpm/sweeps, imported when a sweep begins."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _Frozen(Launcher):
    """Composes all jobs first, and then has them run."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from ddpm.sweeps import launcher

        return launcher.launch(
            self.run, self.config, self.hydra_context, job_overrides, initial_job_idx
        )

    def run(self, jobs: list[Any]) -> None:
        """Run jobs, `ddpm.sweeps.freeze.Job`, that have their folders."""
        raise NotImplementedError


class Serial(_Frozen):
    """`hydra/launcher=serial`, the default."""

    def run(self, jobs: list[Any]) -> None:
        from ddpm.sweeps import serial

        serial.run(jobs)


class Slots(_Frozen):
    """`hydra/launcher=slots`: the knobs are those of `ddpm.sweeps.places.find`."""

    def __init__(self, **knobs: Any) -> None:
        self.knobs = knobs

    def run(self, jobs: list[Any]) -> None:
        from pathlib import Path

        from omegaconf import OmegaConf

        from ddpm.sweeps import places, slots

        plain = OmegaConf.to_container(OmegaConf.create(self.knobs), resolve=True)
        slots.run(jobs, places.find(**plain), Path(self.config.hydra.sweep.dir))
