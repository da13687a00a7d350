"""The older run that a run continues or draws from, and the options it takes from that one."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm.errors import InputError, shown
from ddpm.runner import roles
from ddpm.runner.checkpoints import summary
from ddpm.runner.config import catalog, overrides, paths
from ddpm.runner.config.request import INHERITED
from ddpm.runner.hub import reference
from ddpm.runner.runs import run_dir, stored_config
from ddpm.runner.runs.old_names import FORMER_CHOICES
from ddpm.runner.safe_io import listing
from ddpm.runner.safe_io.plain import Refused
from ddpm.runner.safe_io.tree import get_path, key_of
from ddpm.runner.safe_io.yaml_json import read_yaml
from ddpm.runner.terminal import shell

# What the configuration of a resumable run must hold.
_NEEDED = ("run_id", "seed", "schedule", "diffusion", "optimizer", "hardware", "tracker", "job")


@dataclass(frozen=True)
class BaseRun:
    """An older run.

    Args:
        config: its configuration, or the parts of it that a checkpoint brings along.
        source: how the command line names it, for messages.
        path: its folder, or one of its checkpoints.
        resumed: whether it is resumed, rather than sampled from.
        checkpoint: the file that is drawn from.
        any_data: whether it does not know its pictures, so that a data set can be named for them:
            it is of another program, or its data.root was left out when it was exported.
    """

    config: dict[str, Any]
    source: str
    path: Path
    resumed: bool
    checkpoint: Path | None = None
    any_data: bool = False


def inherited(words: list[str], *, must_exist: bool = True) -> list[str]:
    """Options that a run takes from the older one, as `group=option` for Hydra, and the key that
    lists them.

    Hydra then composes the right keys: `sampler.eta` is known if the older run had sampler=ddim.
    Groups that the words themselves choose are left out.

    Raises:
        InputError: the older run does not exist, and `must_exist`.
    """
    typed = {key_of(word) for word in words}
    named = overrides.values(words)
    key = next((k for k in ("resume", "checkpoint") if named.get(k) is not None), "init_from")
    source = _source(named, key)
    if source == "auto":  # the run that is there, or a new one
        key, must_exist = "init_from", False
        source = _source(named, key)
    if not source or (key == "init_from" and "experiment" in typed):
        return []
    try:
        path = Path(source) if key == "resume" else reference.find(source).path
    except InputError:  # reported when the run is planned
        return []
    belongs_to_job = key != "checkpoint" or "job" in named
    # Before Hydra refuses keys that only that run has.
    if must_exist and belongs_to_job and not listing.exists(path):
        reason = "there is no such file or folder."
        if path.name == summary.BEST and listing.exists(path.parent):
            reason = "that run kept no best checkpoint; job.validate_every and job.keep_best do."
        raise InputError(f"{key}={source}: {reason}")
    choices = _choices_of(path)
    other_job = key == "resume" and catalog.kind_of(str(choices.get("job"))) not in (None, "trains")
    if not choices or other_job:  # a run of another job is refused when the run is planned
        return []
    groups = ["model", "schedule", "objective"]
    if key != "init_from":
        groups = [*(g for g in roles.PROCESS if g != "diffusion"), "optimizer", *roles.DRAWING]
    groups += ["hardware", "tracker", "job", "ema", *roles.MEASURING] if key == "resume" else []
    options = {group: (FORMER_CHOICES | choices).get(group) for group in groups}
    taken = [
        f"{group}={_written(option)}"
        for group, option in options.items()
        if group not in typed
        and option
        and set(catalog.as_list(option)) <= set(catalog.options(group))
    ]
    return [*taken, f"{INHERITED}={_written(taken)}"] if taken else []


def _written(option: str | list[str]) -> str:
    """The value of an override that chooses an option, or several."""
    if isinstance(option, list):
        return f"[{','.join(map(shell.quoted, option))}]"
    return shell.quoted(option)


def _source(named: dict[str, Any], key: str) -> str | None:
    """The run, checkpoint or artifact that a key of the command line names, references resolved;
    None if it names none, or refers to a key that only the composed configuration has."""
    try:
        node = OmegaConf.create({})
        for name, value in named.items():
            if name not in catalog.groups():  # whose values are names of options
                OmegaConf.update(node, name, value)
        source = paths.as_text(OmegaConf.select(node, key))
    except (OmegaConfBaseException, ValueError, TypeError):
        return None
    return source if isinstance(source, str) else None


def _choices_of(path: Path) -> dict[str, Any]:
    """The chosen options of the run that a folder, checkpoint or export belongs to."""
    names = (summary.EXPORT, summary.PIPELINE)
    for file in [path / name for name in names] if path.is_dir() else [path]:
        if file.is_file() and (file.suffix == ".safetensors" or file.name == summary.PIPELINE):
            try:
                return summary.read(file).hparams["choices"]
            except InputError:  # reported when the run is planned
                return {}
    for folder in (path, path.parent, path.parent.parent):
        try:
            return stored_config.read(read_yaml(folder / "config.yaml"))["choices"]
        except (OSError, Refused):
            continue
    return {}


def run_folder(path: Path) -> Path:
    """The run's folder, also if one of its checkpoints is named."""
    return path.parent.parent if path.suffix == ".pt" else path


def resumed(resume: str) -> BaseRun:
    """The training run that `resume` names.

    Raises:
        InputError: it does not exist, or cannot be resumed.
    """
    source = f"resume={resume}"
    folder = run_folder(Path(resume))
    try:
        config = run_dir.read_config(folder)
    except InputError as error:
        raise InputError(f"{source}: {error}{summary.newest_inside(folder)}") from None
    stored_config.check_version(config, source)
    if config.get("kind") != "trains" or not config["choices"].get("job"):
        raise InputError(f"{source}: not a training run (its job: {config['choices'].get('job')}).")
    if missing := [part for part in _NEEDED if part not in config]:
        raise InputError(f"{source}: its config.yaml has no {missing[0]}.")
    return BaseRun(_with_former_choices(config), source, Path(resume), resumed=True)


def drawn_from(checkpoint: str, kind: str) -> BaseRun:
    """The run whose checkpoint `checkpoint` names.

    Args:
        kind: of the job that reads it.

    Raises:
        InputError: there is no such checkpoint, or it is of no use for this job.
    """
    source = f"checkpoint={checkpoint}"
    found = summary_of("checkpoint", checkpoint)
    trained = get_path(found.hparams, "choices.job")
    draws_images = trained != "train_classifier" or kind == "converts"
    if found.hparams.get("kind") != "trains" or not draws_images:
        raise InputError(
            f"{source}: of job={shown(trained)}, not of job=train: it cannot draw images. "
            "To guide sampling with it: guidance=classifier "
            f"{shell.word('guidance.classifier', checkpoint)}."
        )
    brought = (*roles.PROCESS, *roles.DRAWING)
    parts = {key: found.hparams[key] for key in brought if key in found.hparams}
    config = parts | {"choices": found.hparams["choices"], "source": found.about}
    return BaseRun(
        _with_former_choices(config),
        source,
        found.path,
        resumed=False,
        checkpoint=found.file.absolute(),
        any_data=config["choices"].get("data") == "folder"
        and get_path(config, "data.root") is None,
    )


def _with_former_choices(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"choices": FORMER_CHOICES | config["choices"]}


@dataclass(frozen=True)
class FoundCheckpoint:
    """Where a checkpoint is, and its summary."""

    path: Path  # as it was named
    file: Path
    hparams: dict[str, Any]
    about: dict[str, Any]  # run, step and artifact


def summary_of(key: str, source: str) -> FoundCheckpoint:
    """The summary of a checkpoint, export or pipeline, here or on a server.

    Args:
        key: that names it as `source`, for messages.

    Raises:
        InputError: there is no such checkpoint.
    """
    try:
        path, about = reference.find(source)
        found = summary.read(path)
    except InputError as error:
        raise InputError(re.sub("^checkpoint=", f"{key}=", str(error))) from None
    stored_config.check_version(found.hparams, f"{key}={source}")
    return FoundCheckpoint(
        path.absolute(),
        found.file,
        found.hparams,
        {"run_id": found.run_id, "step": found.step, **about},
    )


# Keys that name a run whose network guides, with the job that trained it and what is recorded.
_GUIDES = {
    "guidance.classifier": ("train_classifier", "classifier_source"),
    "guidance.weak": ("train", "weak_source"),
}


def record_guide(config: dict[str, Any]) -> None:
    """Record the run of the network that guides, and its absolute path, after checking that it was
    trained on images like those it will see.

    Raises:
        InputError: it was trained on others, or by another job.
    """
    for key, (job, record) in _GUIDES.items():
        source = get_path(config, key)
        if source is not None and config.get("kind") != "converts":
            config[record] = _checked_guide(config, key, source, job)


def _checked_guide(config: dict[str, Any], key: str, source: str, job: str) -> dict[str, Any]:
    named, found = f"{key}={source}", summary_of(key, source)
    config["guidance"][key.partition(".")[2]] = str(found.path)
    if (trained_by := get_path(found.hparams, "choices.job")) != job:
        raise InputError(f"{named}: of job={trained_by}, not of job={job}.")
    trained, needed = _images_of(found.hparams), _images_of(config)
    if different := [name for name in trained if trained[name] != needed[name]]:
        raise InputError(
            f"{named}: was trained with {', '.join(f'{n}={trained[n]}' for n in different)}; the "
            f"images to draw have {', '.join(f'{n}={value}' for n, value in needed.items())}."
        )
    return found.about


def _images_of(config: dict[str, Any]) -> dict[str, Any]:
    """The properties of images that a guiding network depends on."""
    keys = ("data.image_size", "data.channels", "data.num_classes")
    return {"data": get_path(config, "choices.data")} | {key: get_path(config, key) for key in keys}
