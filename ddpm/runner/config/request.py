"""The command line of one run: its overrides, its chosen options, and the sweep it belongs to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from ddpm.runner.config import team, validate
from ddpm.runner.config.composed import hydra_config, to_dict, typed_words

INHERITED = "inherited"  # the key that holds the options taken from an older run


@dataclass(frozen=True)
class Request:
    """The command line of one run, as Hydra read it.

    Args:
        choices: the chosen option of each group.
        texts: the overrides that the user typed, without those inherited from an older run.
        overrides: the same, parsed.
        keys: the keys and groups that the user or the chosen team's file sets.
        sweep_dir: the folder of the sweep that this job belongs to, or None.
        subdir: the job's own folder in it.
    """

    choices: dict[str, Any]
    texts: list[str]
    overrides: list[Override]
    keys: list[str]
    sweep_dir: Path | None
    subdir: str

    @property
    def multirun(self) -> bool:
        return self.sweep_dir is not None

    @classmethod
    def of(cls, cfg: DictConfig) -> "Request":
        """Parse the command line behind a composed configuration.

        Raises:
            InputError: the team's file sets a key that it may not.
        """
        hydra = hydra_config()
        texts = typed(cfg)
        overrides = OverridesParser.create().parse_overrides(texts)
        choices = dict(hydra.runtime.choices)
        keys = [override.key_or_group for override in overrides]
        shared = team.keys(validate.folders(), choices.get("team"))
        if "team" in keys:  # a resumed run takes the team's keys as if they had been typed
            keys = list(dict.fromkeys([*shared, *keys]))
        multirun = hydra.mode == RunMode.MULTIRUN
        return cls(
            choices=choices,
            texts=texts,
            overrides=overrides,
            keys=keys,
            sweep_dir=Path(hydra.sweep.dir) if multirun else None,
            subdir=str(hydra.sweep.subdir) if multirun else "",
        )


def typed(cfg: DictConfig) -> list[str]:
    """The overrides of a command that its user typed."""
    inherited = set(to_dict(cfg, resolve=False).get(INHERITED) or ())
    return [
        word
        for word in typed_words()
        if word not in inherited and not word.startswith(f"{INHERITED}=")
    ]
