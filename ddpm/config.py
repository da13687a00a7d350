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
TRAINED_WITH = ("model", "schedule", "diffusion", "data")
RESULT_DEPENDS_ON = (*TRAINED_WITH, "optimizer", "seed")
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
    rules.check(config, catalog.defaults(config["choices"]))
    config["data_dir"] = str(Path(config["data_dir"]).expanduser().absolute())
    config["data"]["data_dir"] = config["data_dir"]
    if config["data"].get("root") is not None:
        config["data"]["root"] = str(Path(config["data"]["root"]).expanduser().absolute())
    config["job"] |= {key: look_up(config, path) for key, path in wires.items()}
    check_targets(config)
    hparams = {key: value for key, value in config.items() if key != "output_dir"}
    hparams["job"] = {key: value for key, value in config["job"].items() if key not in wires}
    return _placed(config, hparams, hydra_config, resume)


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
        groups = ["model", "schedule", "data", "optimizer", "sampler"]
        if "resume" in named:
            groups += ["hardware", "tracker"]
        options = {g: choices.get(g) for g in groups if isinstance(choices, dict)}
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
    if job != "train":
        raise InputError(f"resume={resume}: not a training run (its job: {job}).")
    return stored


def _stored_parts(path: Path) -> dict[str, Any]:
    """What a checkpoint knows of the run that wrote it."""
    from ddpm import checkpoint  # torch, only where a checkpoint is to be read

    hparams = checkpoint.find(path)[1]["hparams"]
    return {key: hparams[key] for key in (*TRAINED_WITH, "sampler", "choices")}


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
    merged["job"] = config["job"] | stored.get("job", {})
    if "DDPM_DATA" in os.environ:  # where data are is the machine's affair, not the run's
        merged["data_dir"] = config["data_dir"]
    merged["choices"] = chosen | stored["choices"] | {"job": chosen["job"]}
    for key in [override.key_or_group for override in overrides]:
        root = key.split(".")[0]
        if root in ("resume", "checkpoint", "hydra"):
            continue
        if root == "output_dir" and source.startswith("resume"):
            wrong.append(f"output_dir: {source} goes on in its own folder; leave it out.")
        elif root in (*fixed, "experiment"):
            group = key in chosen
            given = chosen[key] if group else look_up(config, key)
            trained = stored["choices"].get(key) if group else look_up(stored, key)
            if given != trained:
                wrong.append(f"{key}={given}: {source} was trained with {trained}; leave it out.")
        elif key in chosen:
            if key != "job":
                merged[key] = config[key]
                merged["choices"][key] = chosen[key]
        else:
            _set(merged, key, look_up(config, key))
    if wrong:
        raise InputError("\n".join(wrong))
    return merged


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
