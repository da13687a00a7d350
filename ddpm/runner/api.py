"""Runs from Python, in a script or a notebook: the words of the command line, and its runs.

    parts = ddpm.compose("model=unet", "data=mnist", "job.max_steps=500")
    run = ddpm.train(parts)
    images = run.pipeline.sample(16)

Composing, planning and executing are those of ddpm/cli.py. Mistakes are raised as `InputError`.
"""

import contextlib
import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm import cli
from ddpm.errors import InputError
from ddpm.runner import own_folder
from ddpm.runner.config import catalog, composed, explain, overrides
from ddpm.runner.config.build import build
from ddpm.runner.config.plan import Plan
from ddpm.runner.config.planning import plan
from ddpm.runner.distributed import ranks, threads
from ddpm.runner.execution.execute import execute
from ddpm.runner.runs import metrics_log, previews, run_dir, scores
from ddpm.runner.safe_io import listing
from ddpm.runner.sweeps.compose import without_hydra
from ddpm.runner.sweeps.launchers.base import register_default_launcher

if TYPE_CHECKING:
    from ddpm.images import Images
    from ddpm.pipeline import Pipeline


class Parts:
    """The checked configuration of one run: what `python run.py` would run with the same words.

    It may be run several times. Each time is a new run, with a folder of its own.

    Args:
        words: of the command line.
        cfg: what Hydra composed from them.
        config_dir: the user's own folder.
    """

    def __init__(
        self, words: tuple[str, ...], cfg: Any, config_dir: str | Path | None = None
    ) -> None:
        self.words, self.config_dir = words, config_dir
        self._cfg = cfg
        self.config: dict[str, Any] = self.plan().config

    def plan(self) -> Plan:
        """The plan of a new run.

        Raises:
            InputError: a value is missing, breaks its rule, or contradicts the older run.
        """
        cfg = copy.deepcopy(self._cfg)  # planning changes it
        with own_folder.used(self.config_dir), composed.current(cfg):
            return plan(without_hydra(cfg))

    def build(self, part: str) -> Any:
        """A new object of a part, e.g. of `model`, `diffusion`, `data` or `sampler`.

        Raises:
            InputError: the configuration has no such part, or its arguments are refused.
        """
        node = self.config.get(part)
        if not isinstance(node, dict) or "_target_" not in node:
            names = [k for k, v in self.config.items() if isinstance(v, dict) and "_target_" in v]
            raise InputError(f"{part}: not a part; the parts are {', '.join(sorted(names))}.")
        with own_folder.used(self.config_dir), _errors():
            return build(node, part)

    def __repr__(self) -> str:
        own = [] if self.config_dir is None else [f"config_dir={str(self.config_dir)!r}"]
        return f"ddpm.compose({', '.join([*map(repr, self.words), *own])})"


@dataclass(frozen=True)
class Run:
    """The folder of a run, which may have been trained anywhere, and what is in it.

    Args:
        folder: as on the command line in `checkpoint=`.
        config_dir: your own folder, if the run was trained with parts in it.

    Raises:
        InputError: there is no such folder.
    """

    folder: Path
    config_dir: str | Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if not listing.exists(self.folder):
            raise InputError(f"{self.folder}: there is no such folder.")

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration, resolved.

        Raises:
            InputError: the folder is not that of a run.
        """
        return run_dir.read_config(self.folder)

    @property
    def state(self) -> str:
        """`done`, `running`, `failed`, `preempted` or `waiting`."""
        return str(run_dir.read_status(self.folder).get("state", "waiting"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: `{"step": 50, "train/loss": ..., ...}`."""
        file = self.folder / metrics_log.FILE
        return metrics_log.read_metrics(file) if listing.exists(file) else []

    @property
    def scores(self) -> dict[str, float]:
        """The newest values in scores.jsonl, by their names in metrics.jsonl."""
        file = self.folder / scores.FILE
        return scores.values(scores.read(file)) if listing.exists(file) else {}

    @property
    def images(self) -> "Images":
        """The pictures that a run of job=sample has drawn: uint8 (N, C, H, W).

        Raises:
            InputError: there are none, or they differ in size.
        """
        import torch

        from ddpm.images import Images, load_png

        pictures = [load_png(file) for file in previews.drawn(self.folder)]
        if not pictures or len({picture.shape for picture in pictures}) > 1:
            raise InputError(f"{self.folder}: holds no pictures of one size in {previews.FOLDER}/.")
        return torch.stack(pictures).as_subclass(Images)

    @cached_property
    def pipeline(self) -> "Pipeline":
        """Draws with the averaged weights of the newest checkpoint, see `Pipeline.sample`.

        Raises:
            InputError: the run has no checkpoint.
        """
        from ddpm.pipeline import Pipeline

        return Pipeline.from_checkpoint(self.folder, config_dir=self.config_dir)


def compose(*words: str, config_dir: str | Path | None = None) -> Parts:
    """Compose and check a configuration from the words that `python run.py` takes.

    Args:
        config_dir: a folder with options and parts of your own, as in `--config-dir`.

    Raises:
        InputError: a mistake in the words, answered as on the command line.
    """
    if flags := [word for word in words if word.startswith("-")]:
        raise InputError(f"{flags[0]}: compose() takes no flags, only key=value and group=option.")
    for word in words:
        if (override := overrides.parse(word)) and override.is_sweep_override():
            raise InputError(f"{word}: several values are a sweep; compose() takes one of them.")
    threads.begin()
    register_default_launcher()
    if config_dir is not None and not Path(config_dir).expanduser().is_dir():
        raise InputError(f"config_dir={config_dir}: there is no such folder.")
    with own_folder.used(config_dir), _errors(words):
        prepared = cli.prepared(list(words))
        cfg = composed.compose(prepared, catalog.CONF, own_folder.current())
        if cfg.kind == "reads":
            raise InputError(f"job={cfg.hydra.runtime.choices.job}: only prints; use run.py.")
        return Parts(words, cfg, config_dir)


def train(parts: Parts) -> Run:
    """Train as `python run.py` does, to the same weights.

    Raises:
        InputError: a mistake of the user, or a job that does not train.
        KeyboardInterrupt: the run was stopped, and can be resumed.
    """
    if parts.config["kind"] != "trains":
        job = parts.config["choices"]["job"]
        raise InputError(f"job={job}: does not train; ddpm.run(parts) runs any job.")
    return run(parts)


def run(parts: Parts) -> Run:
    """Run any job, e.g. one with `job=sample` or `job=evaluate`.

    Raises:
        InputError: a mistake of the user.
        KeyboardInterrupt: the run was stopped. It has saved its state and can be resumed.
    """
    if ranks.external():
        raise InputError("torchrun and Slurm start run.py; a program starts single processes.")
    from ddpm.runner.execution.guest import guest  # imports torch

    with own_folder.used(parts.config_dir), _errors(), guest():
        result = execute(parts.plan())
    assert result is not None  # rank zero
    return Run(result["dir"], parts.config_dir)


@contextlib.contextmanager
def _errors(words: tuple[str, ...] = ()) -> Iterator[None]:
    """Raise mistakes of the user as InputError, with the text that the command line prints.

    Args:
        words: which the explanation may repeat.
    """
    arguments, sys.argv = sys.argv, [sys.argv[0], *words]
    try:
        yield
    except Exception as error:
        message = explain.explain(error)
        if message is None or str(error) == message:
            raise
        raise InputError(message) from error
    finally:
        sys.argv = arguments
