"""From the composed configuration to the plan of one run: plain data from here on.

A run that goes on, and one that samples, take their parts from the run they build on. What the
command line says of those parts must agree with it; what it says of the others counts.
"""

import os
import re
import secrets
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ddpm import catalog, rules, run_dir
from ddpm.build import check_targets
from ddpm.errors import InputError
from ddpm.mistakes import no_such_key, no_such_option
from ddpm.plan import Plan
from ddpm.rules import look_up

# What the weights were trained with: no command line can change it afterwards.
TRAINED_WITH = ("model", "schedule", "objective", "weighting", "diffusion", "data")
RESULT_DEPENDS_ON = (*TRAINED_WITH, "optimizer", "seed")
# Parts of sampling, that a run knows, too, but that do not bind whoever builds on it.
SAMPLED_WITH = ("sampler", "guidance")
# What runs were made of before these groups were there.
BEFORE = {"objective": "eps", "weighting": "uniform", "guidance": "none"}
TRAINING = ("train", "train_classifier")
_WIRE = re.compile(r"\$\{([\w.]+)\}")


def plan(cfg: DictConfig, inherited: Iterable[str] = ()) -> Plan:
    """Plan the run that Hydra composed.

    Args:
        inherited: overrides that come from the run built on, not from the user.

    Raises:
        InputError: a value is missing, breaks its rule, or contradicts the run built on.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise InputError("\n".join(f"{key}: must be given, as {key}=..." for key in missing))
    hydra_config = HydraConfig.get()
    texts = [text for text in hydra_config.overrides.task if text not in set(inherited)]
    overrides = OverridesParser.create().parse_overrides(texts)
    _check_overrides(cfg, overrides, hydra_config.runtime.choices)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
    config["choices"] = {k: v for k, v in hydra_config.runtime.choices.items() if "/" not in k}
    config["overrides"] = texts
    config["run_id"] = secrets.token_hex(4)
    if "DDPM_DATA" not in os.environ and not any(o.key_or_group == "data_dir" for o in overrides):
        config["data_dir"] = str(catalog.DATA)  # and not data/ wherever the command is typed
    resume, source = config.pop("resume", None), config.get("checkpoint")
    if resume is not None:
        stored = _stored_run(resume)
        config = _continue(config, stored, overrides, RESULT_DEPENDS_ON, f"resume={resume}")
    elif source is not None:
        stored = _stored_parts(Path(source))
        config = _continue(config, stored, overrides, TRAINED_WITH, f"checkpoint={source}")
    wires = _wires(cfg.job)
    rules.follow(config)
    rules.check(config, catalog.defaults(config["choices"]))
    rules.fill_in(config)
    _check_classifier(config)
    config["data_dir"] = str(Path(config["data_dir"]).expanduser().absolute())
    config["data"]["data_dir"] = config["data_dir"]
    if config["data"].get("root") is not None:
        config["data"]["root"] = str(Path(config["data"]["root"]).expanduser().absolute())
    _place_pictures(config["job"])
    config["job"] |= {key: look_up(config, path) for key, path in wires.items()}
    check_targets(config)
    hparams = {key: value for key, value in config.items() if key != "output_dir"}
    hparams["job"] = {key: value for key, value in config["job"].items() if key not in wires}
    return _placed(config, hparams, hydra_config, resume)


def _place_pictures(job: dict[str, Any]) -> None:
    """Make the paths of pictures absolute: the configuration is read elsewhere, too."""

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    if job.get("image") is not None:
        job["image"] = absolute(job["image"])
    if job.get("mask") is not None and job["mask"] not in rules.AREAS:
        job["mask"] = absolute(job["mask"])
    if job.get("images") is not None:
        job["images"] = [absolute(path) for path in job["images"]]


def _placed(
    config: dict[str, Any], hparams: dict[str, Any], hydra_config: DictConfig, resume: str | None
) -> Plan:
    """The plan, with a folder and a name: the run's that goes on, the given, the sweep's, a new."""
    choices, given = config["choices"], config["output_dir"]
    sweep = hydra_config.mode == RunMode.MULTIRUN
    name = f"{choices['model']}-{choices['data']}"
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    output_dir = Path("outputs") / choices["job"] / name / now
    if resume is not None:
        output_dir = _run_folder(resume)
    elif given is not None:
        output_dir = Path(given)
        run_dir.check_free(output_dir)
    elif sweep:
        output_dir = Path(hydra_config.sweep.dir) / hydra_config.sweep.subdir
    source = resume or config.get("checkpoint")
    parts = ("model", "data", "schedule", "optimizer", "sampler")
    return Plan(
        config=config,
        hparams=hparams,
        output_dir=output_dir,
        unique=given is None and not sweep,
        resume=resume is not None,
        checkpoint=None if source is None else Path(source),
        name=" ".join(config["overrides"]) if sweep else name,
        group=Path(hydra_config.sweep.dir).name if sweep else None,
        tags=[str(choices[part]) for part in parts],
    )


def inherited(words: list[str]) -> list[str]:
    """Options that a run takes over from the one it builds on, as `group=option` for Hydra.

    Hydra then composes the right keys: `sampler.eta` is known where the run had sampler=ddim. What
    the words say themselves is left to them.
    """
    given = {word.lstrip("+~").split("=")[0] for word in words}
    named = dict(word.split("=", 1) for word in words if "=" in word)
    source = named.get("resume") or named.get("checkpoint")
    if not source:
        return []
    path = Path(source)
    for folder in (path, path.parent, path.parent.parent):
        try:
            stored = yaml.safe_load((folder / "config.yaml").read_text())
        except (OSError, ValueError, yaml.YAMLError):
            continue
        choices = stored.get("choices", {}) if isinstance(stored, dict) else {}
        if not isinstance(choices, dict):
            return []
        groups = ["model", "schedule", "objective", "weighting", "data", "optimizer"]
        groups += ["hardware", "tracker", "job"] if "resume" in named else []
        options = {g: (BEFORE | choices).get(g) for g in [*groups, *SAMPLED_WITH]}
        return [
            f"{group}={'[' + ','.join(option) + ']' if isinstance(option, list) else option}"
            for group, option in options.items()
            if group not in given
            and option
            and set(catalog.as_list(option)) <= set(catalog.groups()[group])
        ]
    return []


def _run_folder(resume: str) -> Path:
    """The run's folder, also where one of its checkpoints is named."""
    path = Path(resume)
    return path.parent.parent if path.suffix == ".pt" else path


def _stored_run(resume: str) -> dict[str, Any]:
    """The configuration of a training run."""
    try:
        stored = run_dir.read_config(_run_folder(resume))
    except InputError as error:
        raise InputError(f"resume={resume}: {error}") from None
    job = look_up(stored, "choices.job")
    if job not in TRAINING:
        raise InputError(f"resume={resume}: not a training run (its job: {job}).")
    return stored | {"choices": BEFORE | stored["choices"]}


def _stored_parts(path: Path) -> dict[str, Any]:
    """What a checkpoint knows of the run that wrote it."""
    from ddpm import checkpoint  # torch, only where a checkpoint is to be read

    hparams = checkpoint.find(path)[1]["hparams"]
    job = look_up(hparams, "choices.job")
    if job != "train":
        raise InputError(
            f"checkpoint={path}: of job={job}, not of job=train: it draws no images. To guide one "
            f"that does: guidance=classifier guidance.classifier={path}."
        )
    stored = {k: hparams[k] for k in (*TRAINED_WITH, *SAMPLED_WITH) if k in hparams}
    return stored | {"choices": BEFORE | hparams["choices"]}


def _check_classifier(config: dict[str, Any]) -> None:
    """Hold the classifier that is to guide against the images that it will see.

    Raises:
        InputError: it knows others, or is none.
    """
    given = look_up(config, "guidance.classifier")
    if given is None:
        return
    from ddpm import checkpoint

    path = Path(given).expanduser()
    config["guidance"]["classifier"] = str(path.absolute())
    try:
        hparams = checkpoint.find(path)[1]["hparams"]
    except InputError as error:
        raise InputError(str(error).replace("checkpoint=", "guidance.classifier=", 1)) from None
    if (job := look_up(hparams, "choices.job")) != "train_classifier":
        raise InputError(f"guidance.classifier={given}: of job={job}, not of job=train_classifier.")
    own, data = hparams["data"], config["data"]
    keys = {"image_size": "image_size", "channels": "channels", "num_classes": "num_classes"}
    wrong = [f"{name}={own[key]}" for key, name in keys.items() if own[key] != data[key]]
    if own["_target_"] != data["_target_"] or own.get("root") != data.get("root"):
        wrong.insert(0, f"={hparams['choices']['data']}")
    if wrong:
        here = f"={config['choices']['data']}, " + ", ".join(f"{k}={data[k]}" for k in keys)
        raise InputError(
            f"guidance.classifier={given}: was trained with data"
            f"{', data.'.join(wrong) if wrong[0][0] == '=' else '.' + ', data.'.join(wrong)}; "
            f"the images here are data{here}."
        )


def _check_overrides(cfg: DictConfig, overrides: list[Override], choices: dict[str, Any]) -> None:
    """Refuse what Hydra lets pass and nobody would read."""
    for override in overrides:
        key = override.key_or_group
        root, _, name = key.rpartition(".")
        options = catalog.groups().get(key)
        if options is not None and isinstance(choice := choices.get(key), str):
            if choice not in options:  # budget and size are optional to Hydra
                raise InputError(no_such_option(key, choice))
        elif override.is_delete():
            raise InputError(f"~{key}: a key cannot be taken away, only set.")
        elif override.is_add():
            parent = OmegaConf.select(cfg, root) if root else cfg
            if not isinstance(parent, DictConfig) or "_target_" not in parent:
                raise InputError(no_such_key(key))
        elif root == "job" and name in cfg:
            raise InputError(f"{key}: is the run's {name}; set {name}=... instead.")


def _continue(
    config: dict[str, Any],
    stored: dict[str, Any],
    overrides: list[Override],
    fixed: tuple[str, ...],
    source: str,
) -> dict[str, Any]:
    """`stored` with what the command line says of parts that are not `fixed`.

    Raises:
        InputError: the command line contradicts a fixed one.
    """
    chosen, wrong = config["choices"], []
    merged = config | stored
    # The knobs of the job are the run's; which function reads them is this program's affair.
    knobs = {k: v for k, v in stored.get("job", {}).items() if k not in ("_target_", "_partial_")}
    merged["job"] = config["job"] | knobs
    if "DDPM_DATA" in os.environ:  # where data are is the machine's affair, not the run's
        merged["data_dir"] = config["data_dir"]
    merged["choices"] = chosen | stored["choices"] | {"job": chosen["job"]}
    merged["diffusion"] = config["diffusion"] | stored["diffusion"]
    for key in [override.key_or_group for override in overrides]:
        root = key.split(".")[0]
        if root in ("resume", "checkpoint", "hydra"):
            continue
        if root == "output_dir" and source.startswith("resume"):
            wrong.append(f"output_dir: {source} goes on in its own folder; leave it out.")
        elif root in (*fixed, "experiment"):
            group = key in chosen
            given = chosen[key] if group else look_up(config, key)
            trained = stored["choices"].get(key) if group else _trained_with(stored, key)
            if given != trained:
                wrong.append(f"{key}={given}: {source} was trained with {trained}; leave it out.")
        elif key == "job":
            trained = stored["choices"]["job"]
            if source.startswith("resume") and chosen["job"] != trained:
                wrong.append(f"job={chosen['job']}: {source} is of job={trained}; leave it out.")
        elif key in chosen:
            merged[key] = config[key]
            merged["choices"][key] = chosen[key]
        else:
            _set(merged, key, look_up(config, key))
    if wrong:
        raise InputError("\n".join(wrong))
    return merged


def _trained_with(stored: dict[str, Any], key: str) -> Any:
    """The value of a key; its default, where it was not there yet."""
    root, _, name = key.rpartition(".")
    node = look_up(stored, root) if root else stored
    if isinstance(node, dict) and name in node:
        return node[name]
    return catalog.defaults(stored["choices"]).get(key)


def _wires(job: DictConfig) -> dict[str, str]:
    """The job's arguments that stand for another node: `{"model": "model", ...}`."""
    raw = OmegaConf.to_container(job, resolve=False)
    found = {key: _WIRE.fullmatch(str(value)) for key, value in raw.items()}
    return {key: match[1] for key, match in found.items() if match}


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[name] = value
