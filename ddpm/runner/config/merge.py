"""What a run takes over from the one it builds on: one that goes on, or that samples.

What the command line says of the parts that the result depends on must agree with the older run;
what it says of the others counts.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm.errors import InputError, shown
from ddpm.runner.config import catalog, overrides, paths
from ddpm.runner.config.rules import look_up
from ddpm.runner.runs import run_dir, stored_config
from ddpm.runner.safe_io.plain import Refused
from ddpm.runner.safe_io.yaml_json import read_yaml
from ddpm.runner.terminal import shell
from ddpm.trackers.wandb_client import reference

TRAINING = ("train", "train_classifier")
SAMPLING = ("sample", "interpolate", "inpaint")
# What the weights were trained with, and what a checkpoint brings along.
TRAINED_WITH = ("model", "schedule", "objective", "weighting", "diffusion", "data")
# Parts of sampling, that a run knows, too, but that do not bind whoever builds on it.
SAMPLED_WITH = ("sampler", "guidance")
# What runs were made of before these groups were there.
BEFORE = {"objective": "eps", "weighting": "uniform", "guidance": "none"}
# The knobs of a training job that its weights depend on, beside the last digits.
_TRAINING_KNOBS = (
    "batch_size",
    "warmup_steps",
    "lr_decay_start",
    "clip_grad_norm",
    "ema_decay",
    "ema_ramp",
    "label_dropout",
)
_PRESETS = ("experiment", "budget", "rate", "size")  # they set keys of others
RESULT_DEPENDS_ON = (
    *TRAINED_WITH,
    *_PRESETS,
    *("optimizer", "seed"),
    *(f"job.{knob}" for knob in _TRAINING_KNOBS),
)
_NEEDED = ("run_id", "seed", "schedule", "diffusion", "optimizer", "hardware", "tracker", "job")
_ELSEWHERE = ("data.root", "data.data_dir")  # where data are is the machine's affair
_ABOUT_THE_RUN = ("resume", "allow_changes", "checkpoint", "hydra", "output_dir", "data_dir")
taken: list[str] = []  # what the command of this process has taken over: see `inherited`
# In what two sampling runs may differ and still draw the same images.
INCIDENTAL = (
    "run_id",
    "overrides",
    "tracker",
    "choices.tracker",
    "choices.team",
    "code",
    "version",
    "data_dir",
    "data.data_dir",
)


def inherited(words: list[str]) -> list[str]:
    """Options that a run takes over from the one it builds on, as `group=option` for Hydra.

    Hydra then composes the right keys: `sampler.eta` is known where the run had sampler=ddim. What
    the words say themselves is left to them.
    """
    given = {word.lstrip("+~").split("=")[0] for word in words}
    named = overrides.values(words)
    key = "resume" if named.get("resume") is not None else "checkpoint"
    source = _source(named, key)
    if not source or source == "auto":
        return []
    try:
        path = Path(source) if key == "resume" else reference.find(source).path
    except InputError:  # reported when the run is planned
        return []
    choices = _choices_of(path)
    groups = ["model", "schedule", "objective", "weighting", "data", "optimizer"]
    groups += ["hardware", "tracker", "job"] if key == "resume" else []
    options = {g: (BEFORE | choices).get(g) for g in [*groups, *SAMPLED_WITH]} if choices else {}
    return [
        f"{group}={_written(option)}"
        for group, option in options.items()
        if group not in given
        and option
        and set(catalog.as_list(option)) <= set(catalog.groups()[group])
    ]


def _written(option: str | list[str]) -> str:
    """The value of an override that chooses an option, or several."""
    if isinstance(option, list):
        return f"[{','.join(map(shell.quoted, option))}]"
    return shell.quoted(option)


def _source(named: dict[str, Any], key: str) -> str | None:
    """The run, checkpoint or artifact that a key of the command line names, references resolved;
    None where it names none, or refers to what only the whole configuration knows."""
    try:
        node = OmegaConf.create({})
        for name, value in named.items():
            OmegaConf.update(node, name, value)
        found = paths.as_text(OmegaConf.select(node, key))
    except (OmegaConfBaseException, ValueError):
        return None
    return found if isinstance(found, str) else None


def _choices_of(path: Path) -> dict[str, Any]:
    """The options of a run, of whose folder, checkpoints or exports the path is one."""
    export = path / "model.safetensors" if path.is_dir() else path
    if export.suffix == ".safetensors" and export.is_file():
        from ddpm.runner.checkpoints import (
            safetensors_file,  # torch, only where a checkpoint is to be read
        )

        try:
            return safetensors_file.read_hparams(export)["choices"]
        except InputError:  # which is told when the run is planned
            return {}
    for folder in (path, path.parent, path.parent.parent):
        try:
            return stored_config.read(read_yaml(folder / "config.yaml"))["choices"]
        except (OSError, Refused):
            continue
    return {}


def run_folder(resume: str) -> Path:
    """The run's folder, also where one of its checkpoints is named."""
    path = Path(resume)
    return path.parent.parent if path.suffix == ".pt" else path


def stored_run(resume: str) -> dict[str, Any]:
    """The configuration of a training run.

    Raises:
        InputError: there is no run, or none that can go on.
    """
    source = f"resume={resume}"
    try:
        config = run_dir.read_config(run_folder(resume))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    stored_config.check_version(config, source)
    job = look_up(config, "choices.job")
    if job not in TRAINING:
        raise InputError(f"{source}: not a training run (its job: {job}).")
    if missing := [part for part in _NEEDED if part not in config]:
        raise InputError(f"{source}: its config.yaml lacks {missing[0]}.")
    return config | {"choices": BEFORE | config["choices"]}


def stored_parts(source: str, job: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint file that `source` stands for, and what it knows of the run that wrote it.

    Args:
        job: what is to be done with it.

    Raises:
        InputError: there is no such checkpoint, or it is of no use for that.
    """
    file, hparams, who = _read(source)
    trained = look_up(hparams, "choices.job")
    if trained not in (TRAINING if job == "export" else ("train",)):
        raise InputError(
            f"checkpoint={source}: of job={shown(trained)}, not of job=train: it draws no images. "
            "To guide one that does: guidance=classifier "
            f"{shell.word('guidance.classifier', source)}."
        )
    parts = {k: hparams[k] for k in (*TRAINED_WITH, *SAMPLED_WITH) if k in hparams}
    return file, parts | {"choices": BEFORE | hparams["choices"], "source": who}


def _read(source: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """File, configuration, and run and step of a checkpoint."""
    from ddpm.runner.checkpoints import checkpoint  # torch, only where a checkpoint is to be read

    path, about = reference.find(source)
    file, state = checkpoint.find(path)
    stored_config.check_version(state["hparams"], f"checkpoint={source}")
    who = {"run_id": state["run_id"], "step": state["step"], **about}
    return file, state["hparams"], who


def check_classifier(config: dict[str, Any]) -> None:
    """Hold the classifier that is to guide against the images that it will see.

    Raises:
        InputError: it knows others, or is none.
    """
    given = look_up(config, "guidance.classifier")
    if given is None or look_up(config, "choices.job") == "export":
        return
    try:
        _, hparams, who = _read(given)
        config["guidance"]["classifier"] = str(reference.find(given).path.absolute())
    except InputError as error:
        raise InputError(str(error).replace("checkpoint=", "guidance.classifier=", 1)) from None
    if (job := look_up(hparams, "choices.job")) != "train_classifier":
        raise InputError(f"guidance.classifier={given}: of job={job}, not of job=train_classifier.")
    config["classifier_source"] = who
    own, here = _described(hparams), _described(config)
    if wrong := [key for key in own if own[key] != here[key]]:
        raise InputError(
            f"guidance.classifier={given}: was trained with "
            f"{', '.join(f'{key}={own[key]}' for key in wrong)}; the images here are "
            f"{', '.join(f'{key}={value}' for key, value in here.items())}."
        )


def _described(config: dict[str, Any]) -> dict[str, Any]:
    """What a classifier must know of images."""
    keys = ("image_size", "channels", "num_classes")
    return {"data": look_up(config, "choices.data")} | {
        f"data.{key}": look_up(config, f"data.{key}") for key in keys
    }


def merge(
    config: dict[str, Any],
    older: dict[str, Any],
    overrides: Iterable[str],
    source: str,
    *,
    fixed: tuple[str, ...],
    allowed: Iterable[str] = (),
    wires: dict[str, str],
) -> tuple[dict[str, Any], list[str]]:
    """The older configuration with what the command line says, and what that changes of it.

    Args:
        overrides: the keys that the command line names.
        source: what names the older run, for messages.
        fixed: groups and keys that the result depends on.
        allowed: those that may change all the same.
        wires: the parts of the diffusion process that stand elsewhere, too: {"betas": "schedule"}.

    Raises:
        InputError: the command line contradicts a fixed one.
    """
    merged, wrong, changes = config | older, [], []
    # The knobs of the job are the run's; which function reads them is this program's affair.
    knobs = {k: v for k, v in older.get("job", {}).items() if k not in ("_target_", "_partial_")}
    merged["job"] = config["job"] | knobs
    if "DDPM_DATA" in os.environ or "data_dir" in overrides:
        merged["data_dir"] = config["data_dir"]
    chosen = config["choices"]
    merged["choices"] = chosen | older["choices"] | {"job": chosen["job"]}
    merged["diffusion"] = config["diffusion"] | older.get("diffusion", {})
    for key in overrides:
        if key.split(".")[0] in _ABOUT_THE_RUN or (key == "job" and "job" not in older):
            continue
        old, new = (
            _before(older, key, chosen),
            chosen[key] if key in chosen else look_up(config, key),
        )
        if new == old and key in older["choices"]:
            continue
        if new != old and key not in _ELSEWHERE:
            binds = key == "job" or within(key, fixed)
            if binds and (key in _PRESETS or not within(key, allowed)):
                wrong.append(_refusal(key, old, new, source))
                continue
            changes.append(f"{key}: {old} -> {new}")
        if key not in chosen:
            _set(merged, key, look_up(config, key))
        elif key in config:
            merged[key] = config[key]
        if key in chosen:
            merged["choices"][key] = chosen[key]
    if wrong:
        raise InputError("\n".join(wrong[:5]))
    for name, path in wires.items():
        merged["diffusion"][name] = look_up(merged, path)
    return merged, changes


def _before(older: dict[str, Any], key: str, groups: Iterable[str]) -> Any:
    """What the older run had for a key or a group; its default, where it was not there yet."""
    if key in groups:
        return older["choices"].get(key)
    root, _, name = key.rpartition(".")
    node = look_up(older, root) if root else older
    if isinstance(node, dict) and name in node:
        return node[name]
    return catalog.defaults(older["choices"]).get(key)


def within(key: str, places: Iterable[str]) -> bool:
    """Whether a key is one of the places or stands in one."""
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _refusal(key: str, old: Any, new: Any, source: str) -> str:
    if key == "job":
        return f"job={new}: {source} is of job={old}; leave it out."
    told = f"{key}={new}: {source} was trained with {old}; leave it out"
    if key in _PRESETS:
        told += ", or give the keys it sets one by one"
    elif source.startswith("resume"):
        told += f", or let it change the result: 'allow_changes=[{key}]'"
    return f"{told}."


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The keys in which two runs differ, of those that decide what they draw."""
    a, b = (dict(flat(x)) for x in (one, other))
    return [
        f"{key}={a.get(key)} there, {b.get(key)} here"
        for key in dict.fromkeys([*a, *b])
        if a.get(key) != b.get(key) and not within(key, INCIDENTAL)
    ]


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of all that is no dict."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[name] = value
