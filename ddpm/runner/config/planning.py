"""From the composed configuration to the plan of one run: plain data from here on.

A run that goes on, and one that samples, take their parts from the run they build on. What the
command line says of those parts must agree with it; what it says of the others counts.
"""

import logging
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ddpm.errors import InputError, NoSuchKey
from ddpm.runner.config import (
    catalog,
    merge,
    output_dir,
    paths,
    redaction,
    renamed_keys,
    rules,
    team,
    validate,
    wandb_settings,
)
from ddpm.runner.config.build import check_targets
from ddpm.runner.config.explain import no_such_key, no_such_option
from ddpm.runner.config.plan import Plan
from ddpm.runner.config.rules import look_up
from ddpm.runner.runs import code_version, run_dir, stored_config
from ddpm.runner.runs.old_names import RENAMED
from ddpm.runner.safe_io import listing
from ddpm.runner.terminal import shell
from ddpm.trackers.wandb_client import limits

OmegaConf.register_new_resolver("sweep_dir", paths.sweep_dir, replace=True)

logger = logging.getLogger(__name__)

_WIRE = re.compile(r"\$\{([\w.]+)\}")
_DATA_DIR = "${oc.env:DDPM_DATA,data}"  # as config.yaml has it, where nobody says otherwise
_NOT_KEPT = ("output_dir", "version", "allow_changes", "sweep")  # of this start alone


def plan(cfg: DictConfig, inherited: Iterable[str] = ()) -> Plan:
    """Plan the run that Hydra composed.

    Args:
        inherited: overrides that come from the run built on, not from the user.

    Raises:
        InputError: a value is missing, breaks its rule, or contradicts the run built on.
    """
    hydra_config = HydraConfig.get()
    typed = redaction.as_typed(hydra_config)
    texts = [text for text in typed if text not in set(inherited)]
    overrides = OverridesParser.create().parse_overrides(texts)
    renamed_keys.in_files(cfg, [override.key_or_group for override in overrides])
    redaction.check_config(cfg)
    _check_overrides(cfg, overrides, hydra_config.runtime.choices)
    shared = team.keys(validate.folders(), hydra_config.runtime.choices.get("team"))
    validate.drop_unchosen(cfg)
    validate.check(cfg, hydra_config.runtime.choices)
    validate.check_files(validate.folders(), hydra_config.runtime.choices)
    if cfg.sweep is not None and hydra_config.mode != RunMode.MULTIRUN:
        raise InputError(
            f"sweep={cfg.sweep}: names a sweep, and those begin with -m: "
            f"{shell.command('-m', shell.word('sweep', cfg.sweep))} ..."
        )
    hidden = redaction.hidden(cfg)
    try:
        return _plan(cfg, hydra_config, overrides, texts, hidden, shared)
    except InputError as error:
        raise InputError(redaction.without(str(error), hidden)) from None


def _plan(
    cfg: DictConfig,
    hydra_config: DictConfig,
    overrides: list[Override],
    texts: list[str],
    hidden: list[redaction.Hidden],
    shared: list[str],
) -> Plan:
    """The plan of a configuration all of whose values can be read."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
    paths.settle(config, texts)
    config["choices"] = {k: v for k, v in hydra_config.runtime.choices.items() if "/" not in k}
    config["overrides"] = [text for text in texts if not text.startswith("sweep=")]
    config["run_id"] = _run_id(hydra_config)
    unsaid = OmegaConf.to_container(cfg, resolve=False)["data_dir"] == _DATA_DIR
    if unsaid and "DDPM_DATA" not in os.environ:
        config["data_dir"] = str(catalog.DATA)  # and not data/ wherever the command is typed
    wires = _wires(cfg.job)
    keys = [override.key_or_group for override in overrides]
    if "team" in keys:  # the run goes on with what the file says, as if it had been typed
        keys = list(dict.fromkeys([*shared, *keys]))
    resume, allowed = _resume(config, hydra_config), config.get("allow_changes", [])
    rules.check({"allow_changes": allowed}, {})  # before it is asked
    allowed = [RENAMED.get(key, key) for key in allowed]
    changes: list[str] = []
    untyped: tuple[str, ...] = ()
    if resume is None or "tracker" in keys:
        untyped = wandb_settings.fill(config, overrides, validate.folders(), config["choices"])
    if resume is not None:
        older, revealed = redaction.reveal(merge.stored_run(resume), hidden, keys)
        config, changes = merge.merge(
            config,
            older,
            keys,
            f"resume={resume}",
            fixed=merge.RESULT_DEPENDS_ON,
            allowed=allowed,
            wires=_wires(cfg.diffusion),
        )
        hidden += revealed
        wandb_settings.keep(config, older, untyped)
    elif (source := config.get("checkpoint")) is not None:
        file, parts = merge.stored_parts(source, config["choices"]["job"])
        # Somebody's file: of the environment it may ask where data are, and nothing else.
        data, revealed = redaction.reveal({"data": parts["data"]})
        config, _ = merge.merge(
            config,
            parts | data,
            keys,
            f"checkpoint={source}",
            fixed=(*merge.TRAINED_WITH, "experiment"),
            wires=_wires(cfg.diffusion),
        )
        config["checkpoint"] = str(file.absolute())
        hidden += revealed
    config["code"] = code_version.state()
    wandb_settings.mend(config)
    rules.follow(config)
    rules.check(config, catalog.defaults(config["choices"]))
    if "model.attention_resolutions" in keys:
        rules.check_attention(config)
    if hydra_config.mode != RunMode.MULTIRUN:  # where jobs run, others may be logged in
        wandb_settings.check_login(config)
    rules.fill_in(config)
    merge.check_classifier(config)
    config["data_dir"] = _absolute(config["data_dir"])
    config["data"]["data_dir"] = config["data_dir"]
    if config["data"].get("root") is not None:
        config["data"]["root"] = _absolute(config["data"]["root"])
    _place_pictures(config["job"])
    config["job"] |= {key: look_up(config, path) for key, path in wires.items()}
    stored_config.check_values(config)
    check_targets(config)
    for line in rules.doubts(config):
        logger.warning("%s", line)
    hparams = {k: v for k, v in config.items() if k not in _NOT_KEPT}
    hparams["job"] = {key: value for key, value in config["job"].items() if key not in wires}
    hparams = {"version": stored_config.VERSION, **redaction.hide(hparams, hidden)}
    stored_config.to_yaml(
        hparams
    )  # refuses what a resumed run could not read, before a folder is made
    config |= {"allow_changes": allowed}
    return _placed(config, hparams, hydra_config, resume, changes, untyped)


def _run_id(hydra_config: DictConfig) -> str:
    """A new one; or the one that W&B's sweep agent has given to the run it starts."""
    given = os.environ.get("WANDB_RUN_ID")
    alone = limits.in_sweep() and hydra_config.mode != RunMode.MULTIRUN
    return given if alone and stored_config.is_word(given) else secrets.token_hex(4)


def _resume(config: dict[str, Any], hydra_config: DictConfig) -> str | None:
    """The run to go on with, if any: with resume=auto, the one in the folder this one would get.

    Raises:
        InputError: resume=auto, and nothing says which folder that is.
    """
    resume = config.pop("resume", None)
    if resume != "auto":
        return resume
    folder = config["output_dir"]
    if folder is None and hydra_config.mode == RunMode.MULTIRUN:
        return None  # jobs of a sweep go on anyway
    if folder is None and "SLURM_JOB_ID" in os.environ:  # kept when the job is queued again
        folder = f"outputs/{config['choices']['job']}/slurm-{os.environ['SLURM_JOB_ID']}"
    if folder is None:
        raise InputError(
            "resume=auto: goes on with the run in output_dir, or begins it there; give "
            "output_dir=... (a Slurm job needs none)."
        )
    config["output_dir"] = folder
    return folder if listing.exists(Path(folder) / "config.yaml") else None


def _place_pictures(job: dict[str, Any]) -> None:
    """Make the paths of pictures absolute: the configuration is read elsewhere, too."""

    if job.get("image") is not None:
        job["image"] = _absolute(job["image"])
    if job.get("mask") is not None and job["mask"] not in rules.AREAS:
        job["mask"] = _absolute(job["mask"])
    if job.get("images") is not None:
        job["images"] = [_absolute(path) for path in job["images"]]


def _absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).absolute())


def _of_sweep(hydra_config: DictConfig) -> Path:
    """The folder of this job of a sweep."""
    return Path(hydra_config.sweep.dir) / hydra_config.sweep.subdir


def _placed(
    config: dict[str, Any],
    hparams: dict[str, Any],
    hydra_config: DictConfig,
    resume: str | None,
    changes: list[str],
    untyped: tuple[str, ...],
) -> Plan:
    """The plan, with a folder and a name."""
    choices = config["choices"]
    sweep = hydra_config.mode == RunMode.MULTIRUN
    name = f"{choices['model']}-{choices['data']}"
    found = output_dir.choose(
        config, hparams, name, _of_sweep(hydra_config) if sweep else None, resume
    )
    if found.begun and resume is None:
        for settings in (config, hparams):
            wandb_settings.keep(settings, run_dir.read_config(found.folder), untyped)
    output_dir.check_apart(found.folder, config, resume)
    source = resume or config.get("checkpoint")
    several = sweep or limits.in_sweep()
    asked = " ".join(config["overrides"])
    parts = ("model", "data", "schedule", "optimizer", "sampler")
    return Plan(
        config=config,
        hparams=hparams | {"run_id": found.run_id or hparams["run_id"]},
        output_dir=found.folder,
        in_sweep=found.in_sweep,
        chosen=found.chosen,
        unique=found.unique,
        resume=found.begun,
        trains=choices["job"] in merge.TRAINING,
        changes=changes,
        checkpoint=None if source is None else Path(source),
        name=asked if several else name,
        group=Path(hydra_config.sweep.dir).name if sweep else None,
        tags=[str(choices[part]) for part in parts],
        title=limits.title_of(config["overrides"]) if several else "",
        untyped=untyped,
    )


def _check_overrides(cfg: DictConfig, overrides: list[Override], choices: dict[str, Any]) -> None:
    """Refuse what Hydra lets pass and nobody would read."""
    for override in overrides:
        key = override.key_or_group
        root, _, name = key.rpartition(".")
        options = catalog.groups().get(key)
        if options is not None and isinstance(choice := choices.get(key), str):
            if choice not in options and not _is_own(key, choice):  # budget is optional to Hydra
                raise InputError(no_such_option(key, choice))
        elif override.is_delete():
            raise InputError(f"~{key}: a key cannot be taken away, only set.")
        elif override.is_add():
            parent = OmegaConf.select(cfg, root) if root else cfg
            target = parent.get("_target_", "") if isinstance(parent, DictConfig) else ""
            # Of our own parts a file names every argument; of others the gate asks the part.
            if not target or (
                str(target).startswith("ddpm.") and key not in catalog.known(choices)
            ):
                raise NoSuchKey(no_such_key(key))
        elif root == "job" and name in cfg:
            raise InputError(f"{key}: is the run's {name}; set {name}=... instead.")


def _is_own(group: str, option: str) -> bool:
    """Whether an option lies in a folder of the user's, which --config-dir names."""
    return any((folder / group / f"{option}.yaml").is_file() for folder in validate.folders())


def _wires(job: DictConfig) -> dict[str, str]:
    """The job's arguments that stand for another node: `{"model": "model", ...}`."""
    raw = OmegaConf.to_container(job, resolve=False)
    found = {key: _WIRE.fullmatch(str(value)) for key, value in raw.items()}
    return {key: match[1] for key, match in found.items() if match}
